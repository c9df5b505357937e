"""Fixtures and guards of every host test: no network, no shared cache, one thread."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when torch and huggingface_hub are imported, by the tests and by what they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from daptkit.cli.main import run
from make_sites import make_sites

ROOT = Path(__file__).resolve().parent.parent
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", ""})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what measures, so that the normal suite leaves it out."""
    for item in items:
        if "benchmarks" in item.path.parts or "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark)


@pytest.fixture(scope="session", autouse=True)
def offline_and_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Refuse connections to other machines and keep caches in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAPTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        yield


def _local_only(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL_HOSTS:
            # Not an OSError: code that survives a lost connection must not survive this.
            raise RuntimeError(f"a test opened a connection to {address[0]}")
        return connect(self, address)

    return guarded


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images: $DAPTKIT_TEST_DATA, or ``../shared`` beside the checkout."""
    folder = Path(os.environ.get("DAPTKIT_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder} (set DAPTKIT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``source`` and ``target``: 48 and 40 phantoms of 32 x 32 in three classes."""
    return make_sites(tmp_path_factory.mktemp("sites"), n_source=48, n_target=40, size=32)


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with a code and one clear message; return the message."""

    def fail(code: int, *arguments: str) -> str:
        assert run(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err[captured.err.index("daptkit: error: ") :]

    return fail
