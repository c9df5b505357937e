"""Folders of images, with or without class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from daptkit.data.image import Log
from daptkit.data.readers import NO_READERS, Readers, missing_package
from daptkit.data.refs import FileRef
from daptkit.data.table import ImageTable
from daptkit.errors import DataError

SPLITS = ("train", "val", "test")
"""Names of top folders that are splits."""


def read_folder(
    root: Path, *, domain: str, labelled: bool, log: Log, readers: Readers = NO_READERS
) -> ImageTable:
    """List the images under a folder, sorted by their relative path.

    Top folders ``train``, ``val`` and ``test`` are splits. The next folder's name is the label if
    labels are wanted; deeper folders only hold files. Hidden files and ``__MACOSX`` are passed
    over; other files that are not images are counted in the log.

    Args:
        root: folder of class folders, of split folders, or of images.
        domain: name for messages.
        labelled: whether folder names are labels.
        log: takes what was left out.
        readers: further formats of images.

    Raises:
        DataError: no images, a folder that cannot be listed, no class folders where labels are
            wanted, or split folders beside class folders.
    """
    images: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for path in sorted(_walk(root)):
        (images if readers.is_image(root / path) else others).append(path)
    _report_others(others, domain, log)
    if not images:
        raise DataError(f"'{root}' holds no images (the {domain}).{_hint(others)}")
    split_of = _splits(images, root, labelled=labelled)
    labels = None
    if labelled:
        labels = [_label(path, split) for path, split in zip(images, split_of, strict=True)]
        images, split_of, labels = _drop_unlabelled(images, split_of, labels, root, domain, log)
    return ImageTable(
        domain=domain,
        names=tuple(str(path) for path in images),
        refs=tuple(FileRef(root / path) for path in images),
        splits=tuple(split_of),
        labels=None if labels is None else tuple(labels),
    )


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Yield files below a folder, relative to it; linked folders are entered once."""
    entered = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in entered:
            below.clear()
            continue
        entered.add(real)
        below[:] = sorted(n for n in below if not n.startswith(".") and n != "__MACOSX")
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (relative / name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    # Passing it over would leave out images, or a whole class, unseen.
    raise DataError(
        f"cannot list '{error.filename}': {error.strerror}. Get permission there, or name the"
        " images that you want in a CSV manifest."
    ) from error


def _splits(images: list[PurePosixPath], root: Path, *, labelled: bool) -> list[str]:
    tops = [path.parts[0] if len(path.parts) > 1 else "" for path in images]
    found = [top if top in SPLITS else "" for top in tops]
    others = sorted({top for top in tops if top and top not in SPLITS})
    if labelled and any(found) and others:
        raise DataError(
            f"'{root}' has the split folders {', '.join(sorted(set(filter(None, found))))} beside "
            f"'{others[0]}'. Keep all classes inside split folders, or use a manifest."
        )
    return found


def _label(path: PurePosixPath, split: str) -> str:
    folders = path.parts[1:-1] if split else path.parts[:-1]
    return folders[0] if folders else ""


def _drop_unlabelled(
    images: list[PurePosixPath],
    splits: list[str],
    labels: list[str],
    root: Path,
    domain: str,
    log: Log,
) -> tuple[list[PurePosixPath], list[str], list[str]]:
    kept = [row for row, label in enumerate(labels) if label]
    if not kept:
        raise DataError(
            f"'{root}' has images but no class folders, and the {domain} needs labels. Put each "
            "class in a folder of its name, or use a CSV manifest with a column 'label'."
        )
    if len(kept) < len(images):
        log(f"{len(images) - len(kept)} images of the {domain} outside class folders left out.")
    return (
        [images[row] for row in kept],
        [splits[row] for row in kept],
        [labels[row] for row in kept],
    )


def _report_others(others: list[PurePosixPath], domain: str, log: Log) -> None:
    if not others:
        return
    kinds = Counter(path.suffix.lower() or "no extension" for path in others)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    log(
        f"{len(others)} files of the {domain} are not images and were left out: {listed}."
        f"{_hint(others)}"
    )


def _hint(others: list[PurePosixPath]) -> str:
    """Name the packages that would read files which nothing installed reads."""
    packages = sorted({package for path in others if (package := missing_package(path.name))})
    return f" For some of them: pip install {' '.join(packages)}." if packages else ""
