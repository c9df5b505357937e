"""The run folder: its files, its lock, atomic writes and the metrics log."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from daptkit.errors import DaptkitError, UsageError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: file to write; its folder is made if needed.
        content: bytes, or text that is written as UTF-8; file names that are not UTF-8 keep their
            bytes.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the block has ended well, as :func:`atomic_write` does.

    Args:
        path: file to write; its folder is made if needed.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{temporary_prefix(path)}{uuid.uuid4().hex}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            # An OSError here would hide the one that matters.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def temporary_prefix(path: Path) -> str:
    """Return how the names of unfinished versions of a file begin; a killed process leaves them."""
    return f".{path.name}."


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed file operation of the block into one line that names the file.

    Raises:
        DaptkitError: the disk is full, or there is no permission.
    """
    try:
        yield
    except OSError as error:
        raise DaptkitError(
            f"cannot write '{path}': {error.strerror or error}. Free space or get permission"
            " there, or choose another place."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become ``null``."""
    atomic_write(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def claim_folder(out: Path) -> None:
    """Make the folder of ``--out``, or accept an empty one.

    Raises:
        UsageError: it holds files, or is one.
        DaptkitError: it cannot be made or read.
    """
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out '{out}' is not an empty folder; name a new one with --out.")
        out.mkdir(parents=True, exist_ok=True)


class RunFolder:
    """Names of the files of a run, relative to one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def config(self) -> Path:
        """Resolved configuration; ``--config`` of it reruns the run."""
        return self.root / "run.toml"

    @property
    def record(self) -> Path:
        """Versions, seed, data hashes, timings and figures."""
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per log step and epoch."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Last and previous state, for ``--resume``."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The delivered model folder."""
        return self.root / "model"

    @property
    def predictions(self) -> Path:
        """Every target row with its class probabilities."""
        return self.root / "predictions.csv"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    @property
    def report_data(self) -> Path:
        """Every number on the page."""
        return self.root / "report.json"

    @property
    def figures(self) -> Path:
        """The page's plots as files."""
        return self.root / "figures"

    @property
    def embedding(self) -> Path:
        """The plotted points of the embedding."""
        return self.root / "embedding.csv"

    @property
    def twin(self) -> RunFolder:
        """The source-only model of the same data, options and seed."""
        return RunFolder(self.root / "twin")

    @property
    def adapted(self) -> RunFolder:
        """The adapted model, where the source-only model is delivered in its place."""
        return RunFolder(self.root / "adapted")

    @property
    def scratch(self) -> RunFolder:
        """The same network trained on the source from random weights, where it was asked for."""
        return RunFolder(self.root / "scratch")

    def remove(self) -> None:
        """Remove the folder with what is in it, if there is one.

        Raises:
            DaptkitError: it cannot be removed.
        """
        with writing(self.root):
            if self.root.exists():
                shutil.rmtree(self.root)

    def open_for_writing(self, *, resume: bool) -> None:
        """Make the folder, or accept the one that ``--resume`` continues.

        Raises:
            UsageError: the folder holds files and ``resume`` is off, or it is a file.
            DaptkitError: it cannot be made or read.
        """
        with writing(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise UsageError(f"--out '{self.root}' is a file; name a new folder.")
            if self.root.is_dir() and any(self._content()) and not resume:
                raise UsageError(
                    f"--out '{self.root}' is not empty; name a new folder, or continue with"
                    " --resume."
                )
            self.root.mkdir(parents=True, exist_ok=True)

    def _content(self) -> Iterator[Path]:
        return (entry for entry in self.root.iterdir() if entry.name != ".lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock ends with the process, however it ends.

        Raises:
            DaptkitError: another process is writing the same run.
        """
        with writing(self.root):
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with writing(self.root):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise DaptkitError(
                        f"another process is writing '{self.root}'; wait for it, or use another"
                        " folder."
                    ) from error
            yield
        finally:
            os.close(handle)


class MetricsLog:
    """Append-only ``metrics.jsonl``; holds numbers and names of losses, never a clock or a path.

    Args:
        path: the file.
        position: size in bytes to keep, as the checkpoint recorded it; what follows is cut off,
            since those steps will be run again.

    Raises:
        DaptkitError: the file cannot be written, or has lost lines that the checkpoint counts on.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            if size < position:
                raise DaptkitError(
                    f"'{path}' is shorter than when the checkpoint was written, so the run cannot"
                    " be continued; start again in a new --out."
                )
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(position)
            self._file.seek(position)

    @property
    def position(self) -> int:
        """Size in bytes, all of it on disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one object; numbers that are not finite become ``null``."""
        line = json.dumps(_finite(entry), allow_nan=False) + "\n"
        with writing(self._path):
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._path):
            self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
