"""Wheels of the host and of plugins, built with hatchling as an installer would build them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

_BUILD = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"


def build_wheel(project: Path, out: Path) -> Path:
    """Build the wheel of a project folder into ``out`` with what is installed here."""
    command = [sys.executable, "-c", _BUILD, str(out.resolve())]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """Install a wheel of pure Python into a folder, which then goes on the path."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
