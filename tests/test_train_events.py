"""What listeners hear of a run, and that whatever they do leaves it as it is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import daptkit
from daptkit.plugin import Event
from daptkit.run import RunFolder
from daptkit.train import events
from daptkit.train.loop import Trainer
from fakes import make_job, tiny_config

Listen = Callable[[Event], None]


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, listener: Listen, **values: Any
) -> tuple[Path, tuple[bytes, ...]]:
    """Return the folder of a run, and its metrics and weights."""
    monkeypatch.setattr(events, "emit_event", listener)
    monkeypatch.setenv("DAPTKIT_CACHE", str(folder / "cache"))
    given = {
        "method": "coral+dann",
        "method_options": {"dann": {"dropout": 0.5}},
        "dropout": 0.5,
        "epochs": 2,
        "decide": "sens=2:0.95",
        "guard": False,
        **values,
    }
    out = daptkit.adapt(tiny_config(folder, **given)).out
    files = (out / "metrics.jsonl", out / "model" / "model.safetensors", out / "predictions.csv")
    return out, tuple(file.read_bytes() for file in files)


def meddler(event: Event) -> None:
    """Draw, seed and switch whatever a run could depend on, and try to write to the event."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    torch.rand(3)
    torch.set_grad_enabled(False)
    for mapping in (event.values, event.text):
        with pytest.raises(TypeError):
            mapping["lr"] = 0.0  # type: ignore[index]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], tuple[bytes, ...]]:
    kept: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        out, files = run(tmp_path_factory.mktemp("heard"), patch, kept.append)
    return out, kept, files


def test_a_run_is_heard_from_its_options_to_its_verdict(
    heard: tuple[Path, list[Event], tuple[bytes, ...]],
) -> None:
    out, kept, _ = heard
    phases = ["source-only", "coral+dann"]
    assert [e.kind for e in kept if not e.phase] == ["run_start", "run_end"]
    for phase in phases:
        kinds = [e.kind for e in kept if e.phase == phase]
        assert kinds[0] == "fit_start"
        assert kinds[-1] == "fit_end"
        assert kinds.count("epoch_end") == 2
        assert "log" in kinds
    assert list(dict.fromkeys(e.phase for e in kept if e.phase)) == phases
    assert {Path(e.folder) for e in kept} == {out}
    start, end = kept[0], kept[-1]
    assert start.values["lr"] == 0.01
    assert start.values["dann.dropout"] == 0.5
    assert start.values["dann.hidden"] == 1024.0  # the default, which nobody gave
    assert start.text["method"] == "coral+dann"
    assert start.text["model"] == "daptkit_lenet"
    assert end.text["verdict"] in ("helped", "no evidence", "hurt", "can't know")
    assert end.text["delivered"] == "adapted"
    assert 0 <= end.values["source_validation/adapted/accuracy"] <= 1
    assert end.values["divergence/source-only/proxy_a_distance"] >= 0
    logged = next(e for e in kept if e.kind == "log" and e.phase == phases[1])
    assert {"lr", "classification", "coral/covariance", "dann/domain"} <= set(logged.values)


def test_nothing_that_is_heard_beside_the_folder_is_a_path_or_names_data(
    heard: tuple[Path, list[Event], tuple[bytes, ...]],
) -> None:
    out, kept, _ = heard
    told = repr([(dict(e.values), dict(e.text), e.files, e.phase) for e in kept])
    assert str(out.parent) not in told
    assert "source.npz" not in told
    assert "sens=2" not in told


def test_files_of_options_are_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[Event] = []
    monkeypatch.setattr(events, "emit_event", kept.append)
    canary = str(tmp_path / "canary")
    config = tiny_config(
        tmp_path,
        pretrained_path=canary,
        cache=canary,
        init_from=canary,
        window="7:canary",
        reader_options=("raw.file=canary",),
        model_kwargs=("file=canary",),
        classes="canary,b",
        model=f"{canary}/net",
    )
    events.run_started(config, ())
    assert "canary" not in repr(replace(kept[0], folder=""))
    assert kept[0].text["model"] == "net"


def test_a_listener_that_meddles_changes_nothing(
    heard: tuple[Path, list[Event], tuple[bytes, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, files = run(tmp_path, monkeypatch, meddler)
    assert files == heard[2]
    assert torch.is_grad_enabled()


def test_only_the_first_process_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Event] = []
    monkeypatch.setattr(events, "emit_event", kept.append)
    job, _ = make_job(tiny_config(tmp_path))
    trainer = Trainer(job)
    for leads in (False, True):
        trainer.world = SimpleNamespace(leads=leads)  # type: ignore[assignment]
        trainer._emit(Event(kind="log", step=int(leads)))
    assert [e.step for e in kept] == [1]


def test_files_of_the_report_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Event] = []
    monkeypatch.setattr(events, "emit_event", kept.append)
    for name in ("report.html", "figures/b.svg", "figures/a.svg", "figures/note.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    events.run_reported(RunFolder(tmp_path))
    assert kept[0].files == ("figures/a.svg", "figures/b.svg", "report.html")
