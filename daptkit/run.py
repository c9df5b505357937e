"""The run folder: its files, its lock, atomic writes and the metrics log."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daptkit.errors import DaptkitError, UsageError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: file to write; its folder is made if needed.
        content: bytes, or text that is written as UTF-8.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise DaptkitError(f"cannot write '{path}': {error.strerror or error}.") from error


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
    def twin(self) -> RunFolder:
        """The source-only model of the same data, options and seed."""
        return RunFolder(self.root / "twin")

    def open_for_writing(self, *, resume: bool) -> None:
        """Make the folder, or accept the one that ``--resume`` continues.

        Raises:
            UsageError: the folder holds files and ``resume`` is off, or it is a file.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--out '{self.root}' is a file; name a new folder.")
        if self.root.is_dir() and any(self._content()) and not resume:
            raise UsageError(
                f"--out '{self.root}' is not empty; name a new folder, or continue with --resume."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DaptkitError(f"cannot make --out '{self.root}': {error.strerror}.") from error

    def _content(self) -> Iterator[Path]:
        return (entry for entry in self.root.iterdir() if entry.name != ".lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock ends with the process, however it ends.

        Raises:
            DaptkitError: another process is writing the same run.
        """
        try:
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DaptkitError(f"cannot write --out '{self.root}': {error.strerror}.") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DaptkitError(
                    f"another process is writing '{self.root}'; wait, or choose another --out."
                ) from error
            yield
        finally:
            os.close(handle)


def replace_folder(made: Path, final: Path) -> None:
    """Move a finished folder to its place, replacing what an interrupted run left there."""
    if final.exists():
        shutil.rmtree(final)
    made.replace(final)
    sync_folder(final.parent)


class MetricsLog:
    """Append-only ``metrics.jsonl``; holds numbers and names of losses, never a clock or a path.

    Args:
        path: the file.
        position: size in bytes to keep, as the checkpoint recorded it; what follows is cut off,
            since those steps will be run again.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(position)
        self._file.seek(position)

    @property
    def position(self) -> int:
        """Size in bytes, all of it on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one object; numbers that are not finite become ``null``."""
        self._file.write((json.dumps(_finite(entry), allow_nan=False) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
