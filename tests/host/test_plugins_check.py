"""``plugins check``, the checks of every kind of plugin, and the host of the fixtures."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conformance_faults as faults
import daptkit
from daptkit.cli.main import run
from daptkit.errors import DataError, UsageError
from daptkit.host import list_plugins, load_methods
from daptkit.host.lookup import find_plugins
from daptkit.plugin import MethodSpec, ModelSpec, ReaderSpec, ScoreSpec
from daptkit.testing import check_names, check_plugin
from daptkit.testing.fixtures import FakeHost, daptkit_host, fast_trainer  # noqa: F401
from daptkit.testing.trainer import FastTrainer, write_site

QUICK = ("named_scalar_losses", "target_changes_loss", "inputs_untouched")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out most checks of methods: what the command does of them is the same."""
    from daptkit.testing import suite

    kept = tuple(c for c in suite.METHOD_CHECKS if c.__name__ in QUICK)
    monkeypatch.setattr(suite, "METHOD_CHECKS", kept)


def method(name: str, factory: type[Any], host: FakeHost) -> None:
    spec = MethodSpec(name=name, summary="Aligns.", factory="", options=faults.Options)
    host.add(spec, factory)


def test_a_table_of_checks(
    daptkit_host: FakeHost, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    method("means", faults.Means, daptkit_host)
    assert run(["plugins", "check", "means"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "method means of daptkit-under-test 0.0"
    assert lines[1].split() == ["CHECK", "STATUS", "SECONDS", "REASON"]
    assert [line.split()[:2] for line in lines[2:]] == [[name, "passed"] for name in QUICK]


def test_a_failure_is_exit_code_4(
    daptkit_host: FakeHost, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    method("bad", faults.InPlace, daptkit_host)
    assert run(["plugins", "check", "bad"]) == 4
    printed = capsys.readouterr()
    assert "inputs_untouched     failed" in printed.out
    assert "changed in place" in printed.out
    assert (
        "daptkit: error: method 'bad' of package daptkit-under-test 0.0 fails inputs_untouched.\n"
        in printed.err
    )
    assert "Traceback" not in printed.err


def test_all_plugins_of_every_kind(
    daptkit_host: FakeHost, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    class Talks(faults.Means):
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Tensor]:
            print("hello")
            return super().losses(source, target, ctx)

    method("means", Talks, daptkit_host)
    method("bad", faults.InPlace, daptkit_host)
    daptkit_host.install("gone", "daptkit_no_such_module")
    daptkit_host.add(ScoreSpec(name="margin", factory="", summary="Margin."), margin)
    assert run(["plugins", "check", "--all", "--json"]) == 4
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {name: entry["ok"] for name, entry in found.items()} == {
        "means": True,
        "bad": False,
        "gone": False,
        "margin": True,
    }
    (loads,) = found["gone"]["checks"]
    assert loads["check"] == "loads"
    assert "daptkit_no_such_module" in loads["reason"]
    assert run(["plugins", "check", "--all"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["bad", "gone", "means", "margin"]
    assert lines[3].split()[4:7] == ["3", "0", "0"]
    assert [line.split()[:2] for line in lines[7:]] == [
        ["bad", "inputs_untouched"],
        ["gone", "loads"],
    ]


def test_no_plugins_at_all(daptkit_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "--all"]) == 0
    assert "no plugins are installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name one plugin, or give --all"),
        (["coral", "--all"], "name one plugin, or give --all"),
        (["corl"], "no plugin 'corl' is installed"),
        (["coral", "--kind", "reader"], "no reader 'coral' is installed"),
        (["coral", "--kind", "methods"], "is not one of"),
        (["coral", "--device", "tpu"], "--device 'tpu' is not one of"),
    ],
)
def test_mistakes(failing: Callable[..., str], arguments: list[str], reason: str) -> None:
    assert reason in failing(2, "plugins", "check", *arguments)


def test_a_plugin_that_is_switched_off(
    failing: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAPTKIT_DISABLE", "coral")
    assert "is switched off by DAPTKIT_DISABLE" in failing(2, "plugins", "check", "coral")


def test_the_list_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "list", "--kind", "reader", "--json"]) == 0
    assert {p["kind"] for p in json.loads(capsys.readouterr().out)} == {"reader"}
    assert run(["plugins", "list", "--kind", "model"]) == 0
    assert capsys.readouterr().out == "no model plugins are installed\n"


# The host of the fixtures.


def test_the_host_knows_what_a_test_adds_and_nothing_else(daptkit_host: FakeHost) -> None:
    assert find_plugins() == []
    daptkit_host.install("coral", "daptkit_coral.plugin", package="mine", version="3")
    method("means", faults.Means, daptkit_host)
    assert [m.spec.name for m in load_methods(["coral", "means"])] == ["coral", "means"]
    with pytest.raises(UsageError, match="'dann' is not installed"):
        load_methods(["dann"])
    listed = {p.name: (p.package, p.status) for p in list_plugins() if p.name == "coral"}
    assert listed == {"coral": ("mine", "ok")}


def test_a_method_of_a_test_runs_as_an_installed_one(
    daptkit_host: FakeHost, tmp_path: Path
) -> None:
    method("means", faults.Means, daptkit_host)
    done = daptkit.adapt(
        source=str(write_site(tmp_path / "s.npz", seed=1)),
        target=str(write_site(tmp_path / "t.npz", seed=2, contrast=0.6)),
        method="means",
        method_options={"means": {"weight": 0.5}},
        model="daptkit_lenet",
        img_size=16,
        epochs=1,
        batch_size=8,
        out=str(tmp_path / "run"),
        report=False,
        device="cpu",
        cache="off",
    )
    assert done.data["plugins"]["means"]["package"] == "daptkit-under-test"


def test_the_fast_trainer_trains(fast_trainer: FastTrainer) -> None:
    first = fast_trainer.fit(faults.loaded(faults.Means), run="a")
    again = fast_trainer.fit(faults.loaded(faults.Means), run="b")
    other = fast_trainer.fit(faults.loaded(faults.Means), run="c", seed=1)
    assert first.metrics == again.metrics != other.metrics
    assert b"fake/gap" in first.metrics
    with pytest.raises(UsageError, match="asks for teacher"):
        fast_trainer.fit(
            faults.loaded(faults.Means, needs=frozenset({"source", "target", "teacher"})), run="d"
        )


# Kinds other than methods: good ones pass, and each planted fault is found.


def margin(inputs: Any) -> float:
    ordered = np.sort(inputs.target_posterior, axis=1)
    return float((ordered[:, -1] - ordered[:, -2]).mean())


def read(path: Path, frame: int | None) -> Any:
    raise DataError("not an image of this kind")


class Network(nn.Module):
    num_features = 4

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_chans, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


class Unpooled(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Idle(Network):
    def __init__(self, in_chans: int) -> None:
        super().__init__(in_chans)
        self.spare = nn.Linear(2, 2)


class Forgets(Network):
    """Part of it is no parameter, so that a stored model is another one."""

    def __init__(self, in_chans: int) -> None:
        super().__init__(in_chans)
        self.scale = 1.0 + torch.rand(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def leaks(path: Path, frame: int | None) -> Any:
    raise DataError(f"cannot read {path}")


def crashes(path: Path, frame: int | None) -> Any:
    raise ValueError("no")


def takes_all(start: bytes) -> bool:
    return True


READER = {"extensions": (".raw9",), "summary": "Raw."}
FOUND: list[tuple[Any, Callable[..., Any], str, str]] = [
    (ScoreSpec(name="x", factory=""), margin, "summary", "one sentence"),
    (ScoreSpec(name="x", factory="", summary="S."), lambda i: 1.0, "score_reads_predictions", ""),
    (ScoreSpec(name="x", factory="", summary="S."), lambda i: "1", "score_is_a_number", "str"),
    (
        ScoreSpec(name="x", factory="", summary="S."),
        lambda i: margin(i) if margin(i) else float("inf"),
        "score_survives_collapse",
        "inf",
    ),
    (ReaderSpec(name="x", factory="", **READER), leaks, "reader_refuses_rubbish", "its name"),
    (ReaderSpec(name="x", factory="", **READER), crashes, "reader_refuses_rubbish", "ValueError"),
    (ReaderSpec(name="x", factory="", **READER), lambda p, f: 1, "reader_refuses_rubbish", "image"),
    (
        ReaderSpec(name="x", factory="", sniff=f"{__name__}:takes_all", **READER),
        read,
        "reader_sniff",
        "CSV",
    ),
    (
        ReaderSpec(name="x", factory="", options=faults.Boundless, **READER),
        read,
        "option_texts_and_bounds",
        "without bounds",
    ),
    (ReaderSpec(name="x", factory="", count="math:pi", **READER), read, "reader_functions", ""),
    (ModelSpec(name="x", factory="", summary="S."), Unpooled, "model_maps_images", "pooled"),
    (ModelSpec(name="x", factory="", summary="S."), Idle, "model_is_trainable", "spare"),
    (ModelSpec(name="x", factory="", summary="S."), Forgets, "model_is_trainable", "same state"),
]
GOOD: list[tuple[Any, Callable[..., Any]]] = [
    (ScoreSpec(name="x", factory="", summary="Margin."), margin),
    (ReaderSpec(name="x", factory="", **READER), read),
    (ModelSpec(name="x", factory="", summary="Small."), Network),
]


@pytest.mark.parametrize(("spec", "factory", "check", "reason"), FOUND)
def test_a_fault_of_another_kind_is_found(
    daptkit_host: FakeHost, spec: Any, factory: Any, check: str, reason: str
) -> None:
    daptkit_host.add(spec, factory)
    (entry,) = find_plugins("x")
    failures = {o.check: o.reason for o in outcomes(entry) if o.status == "failed"}
    assert check in failures
    assert reason in failures[check]


@pytest.mark.parametrize(("spec", "factory"), GOOD)
def test_good_ones_pass(daptkit_host: FakeHost, spec: Any, factory: Any) -> None:
    daptkit_host.add(spec, factory)
    (entry,) = find_plugins("x")
    assert [o for o in outcomes(entry) if o.status == "failed"] == []


def outcomes(entry: Any) -> list[Any]:
    found = list(check_plugin(entry))
    assert [o.check for o in found] == list(check_names(entry.kind))
    return found


def test_a_listener_that_cannot_bear_new_events(site: Any) -> None:
    source = """
from daptkit.plugin import hookimpl

@hookimpl
def daptkit_event(event):
    assert event.kind in ("fit_start", "log", "epoch_end", "unfreeze", "fit_end")
"""
    site.install("daptkit-ear", {"ear_plugin": source}, {"daptkit.events": {"ear": "ear_plugin"}})
    (entry,) = find_plugins("ear", "event")
    found = {o.check: o.status for o in check_plugin(entry)}
    assert found == {"torch_free_import": "passed", "listener_hears_events": "failed"}


def test_every_shipped_reader_passes() -> None:
    for name in ("dicom", "nifti"):
        (entry,) = find_plugins(name, "reader")
        assert [o for o in check_plugin(entry) if o.status != "passed"] == []


def test_features_of_another_size_than_the_model_says(daptkit_host: FakeHost) -> None:
    class Lies(Network):
        num_features = 5

    daptkit_host.add(ModelSpec(name="x", factory="", summary="S."), Lies)
    (entry,) = find_plugins("x")
    reasons = {o.check: o.reason for o in outcomes(entry)}
    assert reasons["model_maps_images"] == "2 images become (2, 4), not (2, 5)"
