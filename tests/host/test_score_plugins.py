"""Scores of plugins on disk, in whole runs and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import daptkit
from daptkit.config import AdaptConfig
from daptkit.errors import PluginError, UsageError
from daptkit.host import list_plugins, load_scores
from daptkit.train.adaptation import run_adaptation
from daptkit.train.progress import SilentReporter
from fakes import tiny_config

SPEC = """
from daptkit.plugin import ScoreSpec, hookimpl

@hookimpl
def daptkit_scores():
    return ScoreSpec(name="NAME", factory="MODULE_score:score", higher_is_better=BETTER)
"""

MARGIN = """
import numpy as np

def score(inputs):
    second, first = np.sort(inputs.target_posterior, axis=1)[:, -2:].T
    return float((first - second).mean())
"""

RISING = """
calls = []

def score(inputs):
    calls.append(inputs.source_posterior.shape)
    return len(calls)
"""

RAISING = """
def score(inputs):
    raise ValueError("no features of this kind")
"""


class Lines(SilentReporter):
    """Keeps the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def install(site: Any, name: str, score: str, *, better: bool = True) -> None:
    module = f"plugin_{name}"
    spec = SPEC.replace("NAME", name).replace("MODULE", module).replace("BETTER", str(better))
    sources = {module: spec, f"{module}_score": score}
    site.install(f"fake-{name}", sources, {"daptkit.scores": {name: module}})


def config_of(folder: Path, **values: Any) -> AdaptConfig:
    options = {"method": "coral", "guard": False, "epochs": 2}
    return tiny_config(folder / "config", out=str(folder / "run"), **{**options, **values})


def epochs(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in lines if line["kind"] == "epoch"]


def test_a_good_one_is_computed_and_a_broken_one_costs_a_line(tmp_path: Path, site: Any) -> None:
    install(site, "margin", MARGIN)
    install(site, "raising", RAISING)
    install(site, "missing", "def scores(inputs): ...")
    install(site, "snd", MARGIN)
    reporter = Lines()
    run_adaptation(config_of(tmp_path), reporter)
    for values in epochs(tmp_path / "run") + epochs(tmp_path / "run" / "twin"):
        assert 0 < values["score/margin"] < 1
        assert not {"score/raising", "score/missing"} & set(values)
    told = [line for line in reporter.lines if line.startswith("warning: score")]
    assert len(told) == 3
    for name, why in (
        ("raising", "ValueError: no features of this kind"),
        ("missing", "has no 'score'"),
        ("snd", "the name 'snd' is daptkit's own"),
    ):
        (line,) = [line for line in told if f"fake-{name} 1.0" in line]
        assert why in line
    status = {row.name: row.reason for row in list_plugins() if row.kind == "score"}
    assert status["margin"] == ""
    assert "is daptkit's own" in status["snd"]


@pytest.mark.parametrize("name", ["im", "last"])
def test_a_name_of_daptkits_own_is_selected_whatever_a_plugin_is_called(
    tmp_path: Path, site: Any, name: str
) -> None:
    install(site, name, MARGIN)
    reporter = Lines()
    done = run_adaptation(config_of(tmp_path, select=name), reporter)
    assert [line for line in reporter.lines if f"the name '{name}' is daptkit's own" in line]
    selection = done.record["figures"].get("selection")
    assert bool(selection) is (name == "im")
    assert f"score/{name}" not in epochs(tmp_path / "run")[0] or name == "im"


@pytest.mark.parametrize(("better", "epoch"), [(True, 2), (False, 1)])
def test_a_run_can_select_by_one(tmp_path: Path, site: Any, *, better: bool, epoch: int) -> None:
    # It rises with every call.
    install(site, "rising", RISING, better=better)
    done = run_adaptation(config_of(tmp_path, select="rising"), SilentReporter())
    selection = done.record["figures"]["selection"]
    vetoed = [one["epoch"] for one in selection["epochs"] if one["vetoes"]]
    assert vetoed == []
    assert selection["epoch"] == epoch
    assert selection["why"].startswith("best rising (")


def test_one_that_is_named_and_broken_is_an_error(tmp_path: Path, site: Any) -> None:
    install(site, "raising", RAISING)
    install(site, "missing", "def scores(inputs): ...")
    with pytest.raises(PluginError, match="named by --select: it raised ValueError"):
        run_adaptation(config_of(tmp_path, select="raising"), SilentReporter())
    with pytest.raises(PluginError, match=r"--select: score 'missing' of package fake-missing 1.0"):
        run_adaptation(config_of(tmp_path, select="missing", resume=True), SilentReporter())
    with pytest.raises(UsageError, match=r"one of last, auto, im, .*raising"):
        daptkit.compare(
            ["coral"],
            source=config_of(tmp_path).source,
            target=config_of(tmp_path).target,
            out=str(tmp_path / "cmp"),
            select="nothing",
        )
    assert not (tmp_path / "cmp").exists()


def test_a_comparison_shows_it(tmp_path: Path, site: Any) -> None:
    install(site, "margin", MARGIN)
    given = vars(config_of(tmp_path))
    names = ("source", "target", "model", "img_size", "bottleneck", "epochs", "batch_size", "aug")
    options = {name: given[name] for name in names}
    out = str(tmp_path / "cmp")
    result = daptkit.compare(["coral"], seeds=1, select="margin", out=out, device="cpu", **options)
    found = {cell["method"]: cell["values"]["score_margin"] for cell in result.data["cells"]}
    assert set(found) == {"none", "coral"}
    assert all(0 < value < 1 for value in found.values())
    (header,) = [line for line in result.summary.splitlines() if "score of a plugin" in line]
    assert "margin" in header.split()
    page = (tmp_path / "cmp" / "compare.html").read_text()
    assert ">margin</th>" in page
    assert "count for no rank" in page
    # It counts for nothing that is recommended.
    assert "margin" not in result.data["choice"]["seeds"]["0"]["weights"]
    selections = [
        json.loads((tmp_path / "cmp" / "runs" / f"{method}-seed0" / "run.json").read_text())[
            "figures"
        ]["selection"]
        for method in ("none", "coral")
    ]
    assert selections[0] is None
    assert selections[1]["rule"] == "margin"


def test_all_are_loaded_or_told_by_name(site: Any) -> None:
    install(site, "margin", MARGIN)
    install(site, "broken", MARGIN)
    (site.folder / "plugin_broken.py").write_text("raise RuntimeError('at import')")
    told: list[tuple[str, str]] = []
    found = load_scores(log=lambda name, text: told.append((name, text)))
    assert [score.spec.name for score in found if score.package.startswith("fake-")] == ["margin"]
    assert [name for name, _ in told] == ["broken"]
    assert "at import" in told[0][1]
