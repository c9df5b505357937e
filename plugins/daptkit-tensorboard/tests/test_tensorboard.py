"""What ends up in TensorBoard's files, read back; and that nothing of it can hurt a run."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daptkit.errors import UsageError
from daptkit.plugin import Event
from daptkit.testing import imports_torch
from daptkit.train import events
from daptkit_tensorboard.plugin import daptkit_event
from fakes import tiny_config

pytest.importorskip("tensorboardX")

TABLE = "model,domain,row,class,class_is,x,y\n" + "".join(
    f"{model},{domain},{row},a,true,{row},{row * row}\n"
    for model in ("source-only", "adapted")
    for domain in ("source", "target")
    for row in range(3)
)


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_TENSORBOARD", "1")


def read(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return tag -> (step, value) of all event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event as Record

    found = defaultdict(list)
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            record = Record.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in record.summary.value:
                content: Any = value.simple_value
                if value.HasField("image"):
                    content = (value.image.height, value.image.width)
                elif value.HasField("tensor"):
                    content = value.tensor.string_val[0].decode()
                found[value.tag].append((record.step, content))
            if record.HasField("session_log"):
                found["resumed"].append((record.step, record.session_log.status))
    return found


def test_a_whole_run_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import daptkit

    monkeypatch.setattr(events, "emit_event", lambda event: daptkit_event(event=event))
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    out = daptkit.adapt(tiny_config(tmp_path, method="coral", guard=False)).out
    root = out / "tensorboard"
    assert sorted(p.name for p in root.iterdir()) == ["coral", "run", "source-only"]
    training = read(root / "coral")
    assert [step for step, _ in training["train/coral/covariance"]] == [10, 20, 30, 40, 50]
    assert [step for step, _ in training["epoch/source_val_accuracy"]] == [50]
    assert "train/coral/covariance" not in read(root / "source-only")
    run = read(root / "run")
    (options,) = run["options/text_summary"]
    assert "| method | coral |" in options[1]
    assert "| lr | 0.01 |" in options[1]
    (verdict,) = run["verdict/text_summary"]
    assert "| delivered | adapted |" in verdict[1]
    assert "result/divergence/adapted/proxy_a_distance" in run
    written = b"".join(f.read_bytes() for f in root.rglob("events.*"))
    for canary in (str(tmp_path), "source.npz", tmp_path.name):
        assert canary.encode() not in written


def test_the_points_of_the_report_become_a_picture(tmp_path: Path) -> None:
    (tmp_path / "embedding.csv").write_text(TABLE)
    files = ("embedding.csv", "figures/training.svg")
    daptkit_event(event=Event(kind="report", step=0, files=files, folder=str(tmp_path)))
    found = read(tmp_path / "tensorboard" / "run")
    ((_, (height, width)),) = found["embedding"]
    assert width == 2 * height > 100
    assert "figures/training.svg" in found["report/text_summary"][0][1]
    (tmp_path / "embedding.csv").write_text(TABLE.partition("\n")[0] + "\n")
    daptkit_event(event=Event(kind="report", step=0, files=files, folder=str(tmp_path)))
    assert len(read(tmp_path / "tensorboard" / "run")["embedding"]) == 1


def test_a_continued_run_takes_back_what_comes_again(tmp_path: Path) -> None:
    def tell(kind: str, step: int, **values: float) -> None:
        event = Event(kind=kind, step=step, values=values, phase="a/b", folder=str(tmp_path))
        daptkit_event(event=event)

    for begin, loss in ((0, 1.0), (10, 2.0)):  # killed after step 20, its checkpoint at 10
        tell("fit_start", begin)
        tell("log", 20, loss=loss)
    tell("fit_end", 20)
    found = read(tmp_path / "tensorboard" / "a_b")
    assert found["train/loss"] == [(20, 1.0), (20, 2.0)]
    assert found["resumed"] == [(10, 1)]  # SessionLog.START purges later steps before it


def test_values_that_are_not_finite_are_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    values = {"gone": math.nan, "far": math.inf, "below": -math.inf, "loss": 0.5}

    for kind in ("fit_start", "log", "epoch_end", "fit_end", "run_end"):
        phase = "" if kind == "run_end" else "dann"
        daptkit_event(
            event=Event(kind=kind, step=0, values=values, phase=phase, folder=str(tmp_path))
        )
    root = tmp_path / "tensorboard"
    prefixes = ("fit_start", "train", "epoch", "fit_end")
    assert read(root / "dann") == {f"{prefix}/loss": [(0, 0.5)] for prefix in prefixes}
    assert read(root / "run") == {"result/loss": [(0, 0.5)]}
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_it_is_off_unless_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(kind="run_start", step=0, text={"method": "none"}, folder=str(tmp_path))
    for value in ("", "0"):
        monkeypatch.setenv("DAPTKIT_TENSORBOARD", value)
        daptkit_event(event=event)
    monkeypatch.delenv("DAPTKIT_TENSORBOARD")
    daptkit_event(event=event)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("DAPTKIT_TENSORBOARD", "yes")
    with pytest.raises(UsageError, match="DAPTKIT_TENSORBOARD takes 1 or 0, not 'yes'"):
        daptkit_event(event=event)


def test_what_it_cannot_place_it_leaves(tmp_path: Path) -> None:
    stray = Event(kind="log", step=1, values={"loss": 1.0}, phase="dann", folder=str(tmp_path))
    daptkit_event(event=stray)
    daptkit_event(event=replace(stray, folder=""))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from daptkit.host import EventBus

    (tmp_path / "tensorboard").write_text("a file is in the way")
    bus = EventBus()
    for kind in ("run_start", "run_end"):
        bus.emit(Event(kind=kind, step=0, folder=str(tmp_path)))
    told = [line for line in capsys.readouterr().err.splitlines() if "tensorboard" in line]
    assert len(told) == 1
    assert "daptkit-tensorboard 0.1.0 is switched off" in told[0]


def test_torch_free_half_imports_no_torch() -> None:
    assert not imports_torch("daptkit_tensorboard.plugin")
