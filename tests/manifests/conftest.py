"""Two sites with manifests, and the commands run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifest_sites import Command, Sites, adapting, commands, draw_sites, trained


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return draw_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="session")
def plain(sites: Sites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on faultless manifests."""
    return trained(sites, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return commands(capsys)


@pytest.fixture
def adapt(sites: Sites, tmp_path: Path, command: Command) -> Command:
    return adapting(sites, tmp_path, command)
