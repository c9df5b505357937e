"""Files of a run: atomic, locked, and clear about what the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daptkit.errors import DaptkitError, UsageError
from daptkit.run import MetricsLog, RunFolder, atomic_write, write_json

HOLDER = """
import sys
from daptkit.run import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DaptkitError, match=r"cannot write '.*a.txt': No space left on device"):
        atomic_write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_files_get_the_permissions_of_the_user(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_file_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.csv", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "a.csv").read_bytes() == b"caf\xe9.png"


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5], "y": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.5], "y": None}


def test_out_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "file").open_for_writing(resume=False)
    with pytest.raises(DaptkitError, match=r"cannot write '.*below': Not a directory"):
        RunFolder(tmp_path / "file" / "below").open_for_writing(resume=False)


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open_for_writing(resume=False)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(DaptkitError, match="another process is writing"), folder.locked():
        pass
    holder.kill()
    holder.wait()
    folder.open_for_writing(resume=False)  # the lock's file is no content
    with folder.locked():
        assert (folder.root / ".lock").exists()


def test_metrics_are_cut_to_the_checkpoint_and_never_padded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": float("nan")})
    position = log.position
    log.write({"step": 2})
    log.close()
    again = MetricsLog(path, position)
    again.write({"step": 3})
    again.close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 3}\n'
    with pytest.raises(DaptkitError, match="shorter than when the checkpoint was written"):
        MetricsLog(path, 1000)


def test_metrics_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DaptkitError, match=r"metrics.jsonl': No space left"):
        _ = log.position
    with pytest.raises(DaptkitError, match="below': File exists"):
        MetricsLog(tmp_path / "metrics.jsonl" / "below")
