"""Readers and event listeners of plugins on disk, in whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import daptkit
from daptkit.config import AdaptConfig
from daptkit.errors import DataError
from fakes import drawn, tiny_config, write_weights

READER = """
from daptkit.plugin import ReaderSpec, hookimpl

@hookimpl
def daptkit_readers():
    return ReaderSpec(name="raw", extensions=(".raw",), factory="plugin_raw_decode:read")
"""

# 16 bit: without the reader in fit_conversion no window would be known.
DECODE = """
import numpy as np
from daptkit.data import DecodedImage

def read(path, frame):
    levels = np.frombuffer(path.read_bytes(), np.uint8).reshape(16, 16).astype(np.uint16) * 257
    return DecodedImage(array=levels, value_range=(0.0, 65535.0))
"""

LISTENER = """
from daptkit.plugin import hookimpl

@hookimpl
def daptkit_event(event):
    raise RuntimeError("the tracker is down")
"""


MODEL = """
from daptkit.plugin import ModelSpec, hookimpl

@hookimpl
def daptkit_models():
    return ModelSpec(name="NAME", factory="plugin_net_code:build", summary="One convolution.")
"""

NETWORK = """
from torch import nn

def build(in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


class Lines:
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def ignore(self, *_: Any) -> None:
        return None

    start = update = advance = stop = ignore


@pytest.fixture
def raw_sites(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of .raw images, which a plugin reads."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    site.install(
        "fake-raw",
        {"plugin_raw": READER, "plugin_raw_decode": DECODE},
        {"daptkit.readers": {"raw": "plugin_raw"}},
    )
    for name, seed in (("source", 1), ("target", 2)):
        for row, (pixels, label) in enumerate(zip(*drawn(60, seed), strict=True)):
            folder = tmp_path / name / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row}.raw").write_bytes(pixels.tobytes())
    return tmp_path


def config_of(folder: Path, **values: Any) -> AdaptConfig:
    given = {"source": (str(folder / "source"),), "target": str(folder / "target"), **values}
    return tiny_config(folder / "config", **given, out=str(folder / "run"), in_chans=1)


def test_a_plugins_reader_serves_adapt_predict_and_evaluate(raw_sites: Path) -> None:
    assert "plugin_raw_decode" not in sys.modules
    result = daptkit.adapt(config_of(raw_sites))
    window = json.loads((result.out / "model" / "model.json").read_text())["conversion"]["windows"]
    assert window["int"][1] > 255
    daptkit.predict(result.out, raw_sites / "target", out=raw_sites / "again.csv", device="cpu")
    assert (raw_sites / "again.csv").read_text() == (result.out / "predictions.csv").read_text()
    scores = daptkit.evaluate(result.out, raw_sites / "target", n_bootstrap=0, device="cpu")
    assert scores["n"] == 60


def test_images_that_a_reader_refuses_are_listed_and_counted(raw_sites: Path) -> None:
    for number, name in ((1, "source"), (2, "target")):
        folder = raw_sites / name / "class0"
        for row in range(number):
            (folder / f"bad{row}.raw").write_bytes(b"short")
    with pytest.raises(DataError, match=r"1 unreadable image in the source \(0 tolerated\)"):
        daptkit.adapt(config_of(raw_sites))
    with pytest.raises(DataError, match=r"2 unreadable images in the target \(1 tolerated\)"):
        daptkit.adapt(config_of(raw_sites, skip_unreadable=2))
    reporter = Lines()
    result = daptkit.adapt(config_of(raw_sites, skip_unreadable=3), reporter=reporter)
    skipped = [line for line in reporter.lines if line.startswith("skipped in the")]
    assert len(skipped) == 3
    assert "class0/bad0.raw" in skipped[0]
    assert "its reader failed with ValueError" in skipped[0]
    record = (result.out / "run.json").read_text()
    assert json.loads(record)["data"]["skipped_unreadable"] == 3
    assert "bad0" not in record


def test_a_reader_whose_decoder_is_broken_is_named(raw_sites: Path, site: Any) -> None:
    (site.folder / "plugin_raw_decode.py").write_text(
        "def read(): pass\nraise RuntimeError('no codec')"
    )
    with pytest.raises(DataError, match="unreadable") as caught:
        daptkit.adapt(config_of(raw_sites))
    assert "fake-raw" in str(caught.value)


def test_of_two_readers_of_one_extension_the_first_serves(raw_sites: Path, site: Any) -> None:
    site.install(
        "fake-raw-two",
        {"plugin_raw_two": READER.replace('"raw"', '"raw_two"')},
        {"daptkit.readers": {"raw_two": "plugin_raw_two"}},
    )
    reporter = Lines()
    daptkit.adapt(config_of(raw_sites), reporter=reporter)
    (line,) = [line for line in reporter.lines if "is not used" in line]
    assert "fake-raw 1.0" in line
    assert "fake-raw-two 1.0" in line


@pytest.mark.parametrize(
    ("name", "owner"), [("daptkit_lenet", "daptkit"), ("resnet18", "timm"), ("own_net", None)]
)
def test_a_plugin_that_has_the_name_of_a_built_in_model_is_told(
    tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch, name: str, owner: str | None
) -> None:
    site.install(
        "fake-net",
        {"plugin_net": MODEL.replace("NAME", name), "plugin_net_code": NETWORK},
        {"daptkit.models": {name: "plugin_net"}},
    )
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    reporter = Lines()
    out = daptkit.adapt(tiny_config(tmp_path, model=name, in_chans=1), reporter=reporter).out
    assert [line for line in reporter.lines if "fake-net" in line] == (
        []
        if owner is None
        else [
            f"warning: model {name} is that of package fake-net 1.0, not {owner}'s; set"
            f" DAPTKIT_DISABLE=fake-net to use {owner}'s."
        ]
    )
    model = json.loads((out / "run.json").read_text())["model"]
    assert model == {"name": name, "package": "fake-net 1.0", "weights": None}


def test_what_is_cached_is_of_one_version_of_a_plugins_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    weights = write_weights(tmp_path)
    told = []
    for number, version in enumerate(("1.0", "1.0", "2.0")):
        for place in ("trunk", "network"):
            monkeypatch.setattr(
                f"daptkit.train.{place}.model_package", lambda name, v=version: f"fake-net {v}"
            )
        reporter = Lines()
        config = tiny_config(
            tmp_path, **weights, finetune="frozen", out=str(tmp_path / f"{number}")
        )
        daptkit.adapt(config, reporter=reporter)
        told.append("\n".join(reporter.lines))
    assert ["0 of 2 domains from the cache" in text for text in told] == [True, False, True]
    assert ["reused" in text for text in told] == [False, True, False]


def test_a_built_in_model_is_of_no_package(
    tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install(
        "fake-net",
        {"plugin_net": MODEL.replace("NAME", "daptkit_lenet"), "plugin_net_code": NETWORK},
        {"daptkit.models": {"daptkit_lenet": "plugin_net"}},
    )
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DAPTKIT_DISABLE", "fake-net")
    reporter = Lines()
    out = daptkit.adapt(tiny_config(tmp_path), reporter=reporter).out
    assert not [line for line in reporter.lines if "fake-net" in line]
    assert json.loads((out / "run.json").read_text())["model"]["package"] is None
    assert "plugin_net" not in sys.modules


def test_a_listener_that_raises_is_never_fatal(tmp_path: Path, site: Any) -> None:
    site.install(
        "fake-tracker",
        {"plugin_tracker": LISTENER},
        {"daptkit.events": {"tracker": "plugin_tracker"}},
    )
    script = (
        "import sys; from pathlib import Path; import daptkit; from fakes import tiny_config;"
        "print(daptkit.adapt(tiny_config(Path(sys.argv[1]))).out)"
    )
    tests = str(Path(__file__).resolve().parent.parent)
    done = site.run(
        "-c",
        script,
        str(tmp_path / "run"),
        PYTHONPATH=":".join([str(site.folder), str(Path(tests).parent), tests]),
        DAPTKIT_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the tracker is down") == 1
    assert "fake-tracker" in done.stderr
