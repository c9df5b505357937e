"""Light stand-ins for what ``daptkit doctor`` looks at, each well or broken as a test wants it."""

from __future__ import annotations

import os
from pathlib import Path

from daptkit.cli.main import run
from daptkit.doctor import examine

DRIVER = "#!/bin/sh\necho 570.86.15\n"
FAKES = ("numpy", "scipy", "sklearn", "matplotlib", "umap", "imagehash")
"""Slow modules that look well and are nothing; torch, torchvision and timm are faked apart."""

TORCH = """
__version__ = "2.14.1+cu130"

class version:
    cuda, hip = {built!r}, None

class cuda:
    is_available = staticmethod(lambda: {gpus!r} != [])
    device_count = staticmethod(lambda: len({gpus!r}))
    get_device_name = staticmethod(lambda i: "Fake H100")
    mem_get_info = staticmethod(lambda i: {gpus!r}[i])

    @staticmethod
    def init():
        raise RuntimeError({reason!r})

class ones:
    def __init__(self, *shape, device):
        pass

    def __matmul__(self, other):
        {product}

    def sum(self):
        return 8.0
"""


def fake_torch(*, built=None, gpus=(), reason="no device", product="return self"):
    return TORCH.format(built=built, gpus=list(gpus), reason=reason, product=product)


def make_healthy(site, monkeypatch, tmp_path):
    """Put stand-ins for everything slow on the path, with nothing wrong."""
    for name in FAKES:
        (site.folder / f"{name}.py").touch()
    put(site, torch=fake_torch(), torchvision='__version__ = "0.29.1+cu130"', timm="")
    for name in [n for n in os.environ if n.startswith("DAPTKIT_")]:
        monkeypatch.delenv(name)
    for name in ("PATH", "DAPTKIT_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return site


def put(site, **sources):
    for name, source in sources.items():
        (site.folder / f"{name}.py").write_text(source)


def driver(text=DRIVER):
    tool = Path(os.environ["PATH"]) / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(text)
    tool.chmod(0o755)


def found(limit=20.0):
    return {check.name: check for check in examine(limit)}


def told(capsys, *arguments):
    """Return exit code and stdout of the command."""
    code = run(["doctor", *arguments])
    return code, capsys.readouterr().out
