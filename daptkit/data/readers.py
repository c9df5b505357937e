"""Which reader opens a file: the host's own, or the format of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daptkit.data.image import FileIdentity, Reader

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp")
"""Extensions that need no plugin."""

SNIFFED = 512
"""Bytes at the start of a file that tell its format."""

_PACKAGES = {".dcm": "daptkit-dicom", ".nii": "daptkit-nifti", ".nii.gz": "daptkit-nifti"}
"""Formats of packages that are released together with daptkit."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """An image format of a plugin, ready to be used.

    Args:
        name: name of the reader.
        extensions: lower case with their dot.
        read: reads one frame.
        count: number of frames of a file, from its header; ``None`` where files have one.
        sniff: whether a file that starts with these bytes has the format.
        identify: what a file's header says it is of; ``None`` where the format does not say.
        origin: package and version.
        options: the reader's options, JSON values.
    """

    name: str
    extensions: tuple[str, ...]
    read: Reader
    count: Callable[[Path], int] | None = None
    sniff: Callable[[bytes], bool] | None = None
    identify: Callable[[Path], FileIdentity] | None = None
    origin: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the pixels that the format reads from a file."""
        return {"package": self.origin, "options": dict(self.options)}


class Readers:
    """The formats that a run can read beside the host's own.

    Args:
        formats: at most one for each extension.
    """

    def __init__(self, formats: Sequence[Format] = ()) -> None:
        self.formats = tuple(formats)
        self._by_extension = {e: one for one in self.formats for e in one.extensions}

    def find(self, path: Path) -> Format | None:
        """Return the format that reads a file; ``None`` for the host's own decoder.

        The longest extension that the name ends with decides. A file whose extension nobody knows
        is opened and sniffed.
        """
        lower = path.name.lower()
        fitting = [extension for extension in self._by_extension if lower.endswith(extension)]
        if fitting:
            return self._by_extension[max(fitting, key=len)]
        return None if lower.endswith(EXTENSIONS) else self._sniffed(path)

    def is_image(self, path: Path) -> bool:
        """Return whether a file is an image of the host or of a format."""
        return path.name.lower().endswith(EXTENSIONS) or self.find(path) is not None

    def _sniffed(self, path: Path) -> Format | None:
        sniffers = [one for one in self.formats if one.sniff is not None]
        if not sniffers:
            return None
        try:
            with path.open("rb") as file:
                start = file.read(SNIFFED)
        except OSError:  # the decoder is what reports an unreadable file
            return None
        return next((one for one in sniffers if one.sniff is not None and one.sniff(start)), None)


NO_READERS = Readers()
"""The host's own formats alone."""


def missing_package(name: str) -> str | None:
    """Return the package that reads a file of this name, if daptkit is released with one."""
    lower = name.lower()
    return next((_PACKAGES[e] for e in _PACKAGES if lower.endswith(e)), None)
