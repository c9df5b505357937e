"""The commands: what reaches the pipelines, what is printed, and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from daptkit import __version__
from daptkit.cli.adapt import SECTIONS
from daptkit.cli.main import run
from daptkit.config import AdaptConfig
from daptkit.errors import DataError, Terminated

INFERENCE = {
    "domain": "target",
    "aggregate": None,
    "device": "auto",
    "workers": None,
    "skip_unreadable": 0,
    "cache": None,
}
SITES = ["--source", "a", "--target", "b", "--out", "o"]


@pytest.fixture
def recipes(monkeypatch):
    """A stand-in for the pipelines that keeps the calls."""
    fake = ModuleType("daptkit.recipes")
    fake.calls = []

    def adapt(config, *, reporter):
        reporter.line("progress")
        fake.calls.append(config)
        data = {"out": config.out, "loss": float("nan")}
        return SimpleNamespace(summary="done.", data=data, out=Path(config.out), leads=True)

    def predict(*args, reporter, **kwargs):
        fake.calls.append((args, kwargs))
        return "predictions.csv"

    def evaluate(*args, reporter, **kwargs):
        fake.calls.append((args, kwargs))
        return {
            "n": 12,
            "absent": ["cat"],
            "accuracy": {"value": 0.75, "low": 0.5, "high": 0.875},
            "sensitivity": {"dog": {"value": float("nan"), "low": None, "high": None}},
        }

    fake.adapt, fake.predict, fake.evaluate = adapt, predict, evaluate
    monkeypatch.setitem(sys.modules, "daptkit.recipes", fake)
    return fake


def test_every_field_has_its_section():
    fields = {name for name in AdaptConfig.__dataclass_fields__ if name != "method_options"}
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(fields)


def test_version_and_help(capsys):
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("adapt", "predict", "evaluate", "plugins", "Exit codes"):
        assert name in out


def test_flags_reach_the_configuration(site, recipes, capsys):
    site.method("alpha-pkg", "alpha")
    code = run(
        [
            *("adapt", "--source", "a1", "--source", "a2", "--target", "b", "--out", "o"),
            *("-m", "alpha", "--lr", "0.5", "--amp", "--img_size", "32", "--mean", ".5,.5,.5"),
            *("--model-kwargs", "pad_type=same,x=1", "--alpha.weight", "2", "--alpha.mean-term"),
            *("--alpha.layer_names", "p", "--alpha.layer-names", "q"),
        ]
    )
    assert code == 0
    assert capsys.readouterr().out == "done.\n\nreport: o/report.html\n"
    (config,) = recipes.calls
    assert config == AdaptConfig(
        source=("a1", "a2"),
        target="b",
        out="o",
        method="alpha",
        lr=0.5,
        amp=True,
        img_size=32,
        mean=(0.5, 0.5, 0.5),
        model_kwargs=("pad_type=same", "x=1"),
        method_options={"alpha": {"weight": 2.0, "layer_names": ("p", "q"), "mean_term": True}},
    )


def test_flag_over_file_over_default(site, recipes, tmp_path):
    site.method("alpha-pkg", "alpha")
    file = tmp_path / "c.toml"
    file.write_text(
        'source = ["a"]\ntarget = "b"\nmethod = "alpha"\nlr = 0.5\namp = true\nepochs = 4\n'
        "[methods.alpha]\nweight = 3.0\nmean_term = true\n"
    )
    assert run(["adapt", "--config", str(file), "--out", "o", "--no-amp", "--lr", "0.01"]) == 0
    assert run(["adapt", f"--config={file}", "--out=o", "--alpha.weight=5"]) == 0
    assert run(["adapt", f"--config={file}", "--out=o", "-mnone"]) == 0
    first, second, third = recipes.calls
    assert (first.lr, first.amp, first.epochs) == (0.01, False, 4)
    assert first.method_options["alpha"]["weight"] == 3.0
    assert second.amp is True
    assert second.method_options == {"alpha": {"weight": 5.0, "layer_names": (), "mean_term": True}}
    assert third.method_options == {}


def test_json_output_is_strict_json_only(recipes, capsys):
    assert run(["adapt", *SITES, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out": "o", "loss": None}
    assert "progress" in captured.err


def test_help_shows_the_methods_own_options(site, capsys):
    site.method("alpha-pkg", "alpha")
    assert run(["adapt", "-m", "alpha", "--help"]) == 0
    out = capsys.readouterr().out
    section = " ".join(out[out.index("Method alpha:") :].split())  # undo the wrapping
    for part in ("--alpha.weight X", "Weight of the alignment loss.", "default: 1.0", "<=10.0"):
        assert part in section
    assert "--alpha.mean-term / --alpha.no-mean-term" in section
    assert run(["adapt", "--help"]) == 0
    plain = capsys.readouterr().out
    assert "alpha" not in plain
    titles = [f"{title}:" for title in SECTIONS]
    assert [line for line in plain.splitlines() if line in titles] == titles


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adpat"], "Did you mean 'adapt'?"),
        (["plugins", "lst"], "Did you mean 'list'?"),
        (["adapt", "--epoch", "3"], "--epochs"),
        (["adapt", "--lr", "fast"], "--lr"),
        (["adapt", "--opt", "adam"], "'sgd', 'adamw'"),
        (["adapt", "--img-size", "4"], "8<=x<=4096"),
        (["adapt", *SITES[2:]], "--source is missing"),
        (["adapt", *SITES, "-m", "alpah"], "Did you mean 'alpha'?"),
        (["adapt", *SITES, "-m", "alpha", "-m", "none"], "-m alpha+none"),
        (["adapt", *SITES, "--alpha.weight", "1"], "belongs to method 'alpha'"),
        (["adapt", *SITES, "-m", "alpha", "--alpha.weigth", "1"], "--alpha.weight"),
        (["adapt", *SITES, "-m", "alpha", "--alpha.weight", "11"], "0.0<=x<=10.0"),
        (["adapt", *SITES, "--config", "absent.toml"], "absent.toml"),
        (["adapt", *SITES, "extra"], "extra"),
        (["predict", "run"], "--images"),
        (["predict", "run", "--images", "x", "--out", "y", "--domain", "moon"], "source"),
        (["evaluate", "run"], "--data"),
    ],
)
def test_usage_errors_exit_with_2(site, recipes, capsys, arguments, message):
    site.method("alpha-pkg", "alpha")
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert recipes.calls == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("x.png cannot be read."), 3, "daptkit: error: x.png cannot be read."),
        (Terminated("stopped."), 143, "daptkit: error: stopped."),
        (KeyboardInterrupt(), 130, "daptkit: interrupted"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero; rerun"),
    ],
)
def test_failures_of_a_pipeline(recipes, capsys, error, code, message):
    def fail(config, *, reporter):
        raise error

    recipes.adapt = fail
    assert run(["adapt", *SITES]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert run(["adapt", *SITES, "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code != 130)


def test_a_broken_named_plugin_exits_with_4(site, recipes, capsys):
    site.method("alpha-pkg", "alpha", source="import nothing_like_this")
    assert run(["adapt", *SITES, "-m", "alpha"]) == 4
    assert "alpha-pkg 1.0" in capsys.readouterr().err


def test_predict(recipes, capsys):
    assert run(["predict", "r", "--images", "i", "--out", "p.csv", "--skip-unreadable", "2"]) == 0
    assert capsys.readouterr().out == "predictions.csv\n"
    (call,) = recipes.calls
    assert call == (("r", "i"), {"out": "p.csv", **INFERENCE, "skip_unreadable": 2})


def test_evaluate_prints_values_with_intervals(recipes, capsys):
    assert run(["evaluate", "r", "--data", "d", "--bootstrap", "50"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "n                12",
        "absent           cat",
        "accuracy         0.750 [0.500, 0.875]",
        "sensitivity.dog  -",
    ]
    ((args, kwargs),) = recipes.calls
    assert args == ("r", "d")
    assert kwargs == {"split": None, "n_bootstrap": 50, **INFERENCE}


def test_evaluate_json_and_file(recipes, capsys, tmp_path):
    file = tmp_path / "scores.json"
    assert run(["evaluate", "r", "--data", "d", "--json", "--out", str(file)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads(file.read_text())
    assert scores["accuracy"] == {"value": 0.75, "low": 0.5, "high": 0.875}
    assert scores["sensitivity"]["dog"]["value"] is None
    assert run(["evaluate", "r", "--data", "d", "--out", str(tmp_path)]) == 2
    assert "cannot write --out" in capsys.readouterr().err
