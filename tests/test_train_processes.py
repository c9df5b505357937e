"""Runs by two processes: the same results as by one, one voice, and one end for all."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import DataError, UsageError
from daptkit.train.checkpoint import load_checkpoint
from daptkit.train.prepare import check_same_data
from daptkit.train.world import World, check_shared_batch, joined_world, own_device
from run_ranks import RUNS

HERE = Path(__file__).resolve().parent
SIZES = (1, 2)
Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    """Do all runs by one process and by two; return what each process found."""
    script, one, two = str(HERE / "run_ranks.py"), str(folder / "1"), str(folder / "2")
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for arguments in ([script, one, two], [*torchrun, script, two]):
        subprocess.run([sys.executable, *arguments], check=True, env=environment)
    return {
        size: [torch.load(folder / str(size) / f"{rank}.pt") for rank in range(size)]
        for size in SIZES
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def counted(name: str) -> bool:
    """Whether a value is a share of images, which a last digit can move by a whole one."""
    return "accuracy" in name or name in ("score/atc", "score/iwcv")


def probabilities(run: Path) -> torch.Tensor:
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    return torch.tensor([[float(row[f"p_{k}"]) for k in range(3)] for row in rows])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_depend_on_the_number_of_processes(
    folder: Path, found: Found, name: str
) -> None:
    one, two = (folder / str(size) / name for size in SIZES)
    # bfloat16 keeps three digits, and sums of other lengths round otherwise.
    near = {"rtol": 0.05, "atol": 0.02} if name == "mixed" else {"rtol": 2e-3, "atol": 2e-4}
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert {**a, "values": 0, "source_val_loss": 0} == {**b, "values": 0, "source_val_loss": 0}
        if "values" in a:
            losses = [{k: v for k, v in e["values"].items() if not counted(k)} for e in (a, b)]
            torch.testing.assert_close(losses[1], losses[0], **near)
    torch.testing.assert_close(probabilities(two), probabilities(one), **near)
    assert sorted(p.relative_to(one) for p in one.rglob("*")) == sorted(
        p.relative_to(two) for p in two.rglob("*")
    )
    assert json.loads((two / "run.json").read_text())["processes"] == 2


def test_the_first_process_alone_speaks_and_all_return_the_same(found: Found) -> None:
    leader, other = (result["runs"] for result in found[2])
    for name in RUNS:
        assert leader[name]["leads"]
        assert not other[name]["leads"]
        assert not other[name]["lines"]
        assert leader[name]["data"] == other[name]["data"]
        assert leader[name]["lines"] == found[1][0]["runs"][name]["lines"]


def test_stages_are_unfrozen_and_trained(folder: Path, found: Found) -> None:
    unfrozen = [line for line in metrics(folder / "2" / "gradual") if line["kind"] == "unfreeze"]
    assert unfrozen
    assert unfrozen == [
        {**line, "source_val_loss": pytest.approx(line["source_val_loss"], rel=1e-3)}
        for line in metrics(folder / "1" / "gradual")
        if line["kind"] == "unfreeze"
    ]


def test_the_first_process_chooses_an_epoch_for_all(folder: Path, found: Found) -> None:
    one, two = (json.loads(found[size][0]["runs"]["selected"]["data"]) for size in SIZES)
    chosen = two["figures"]["selection"]
    assert chosen["epoch"] == one["figures"]["selection"]["epoch"] < chosen["of"]
    (kept,) = (folder / "2" / "selected" / "checkpoints").glob("epoch-*")
    assert kept.name == f"epoch-{chosen['epoch']:05d}.ckpt"


def test_trunk_features_are_computed_once(found: Found) -> None:
    lines = {name: found[2][0]["runs"][name]["lines"] for name in ("frozen", "again")}
    assert "trunk features: 0 of 2 domains from the cache, 2 computed" in lines["frozen"]
    assert "trunk features: 2 of 2 domains from the cache, 0 computed" in lines["again"]
    assert "augmented views: 4 of 4 from the cache, 0 computed" in lines["again"]


def test_every_process_ends_with_the_same_weights(found: Found) -> None:
    for what in ("sound", "continued"):
        first, second = (result[what]["module"] for result in found[2])
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_losses_left_out_of_a_step_leave_the_same_weights(found: Found) -> None:
    torch.testing.assert_close(
        found[2][0]["sound"]["module"], found[1][0]["sound"]["module"], rtol=1e-3, atol=1e-5
    )


def test_a_run_of_one_process_is_continued_by_two(found: Found) -> None:
    one, two = (found[size][0]["continued"] for size in SIZES)
    torch.testing.assert_close(two["module"], one["module"], rtol=1e-3, atol=1e-5)
    assert any("continued by 2 processes instead of 1" in line for line in two["lines"])
    assert not any("continued by" in line for line in one["lines"])


def test_a_plugin_that_raises_on_one_process_ends_the_others(found: Found) -> None:
    leader, other = (result["faulty"] for result in found[2])
    assert other["code"] == 4
    assert other["error"].startswith("process 2 of 2: method 'fake'")
    assert "ValueError: only here" in other["error"]
    assert leader["code"] == 1
    assert "another process of the run has ended" in leader["error"]


def test_what_processes_agree_on(found: Found) -> None:
    for rank, result in enumerate(result["agreements"] for result in found[2]):
        assert result["first"] == 7
        assert result["all"] == [0, 1]
        assert result["signal"] == signal.SIGTERM
        assert result["no signal"] is None
        assert result["first fails"] == ("no such thing", rank != 0)
        assert result["last fails"] == ("no such thing", rank != 1)
        assert all(result[f"joined {parts}"] for parts in (1, 2, 5))


def test_a_mistake_is_told_once(found: Found) -> None:
    first, second = (result["mistake"] for result in found[2])
    assert first[0] == second[0] == 2
    assert "--batch-size 7 cannot be shared equally by 2 processes; give 6 or 8." in first[2]
    assert second[1:] == ("", "")


def test_the_summary_is_printed_once(found: Found) -> None:
    first, second = (result["done"] for result in found[2])
    assert first[0] == second[0] == 0
    assert "balanced accuracy" in first[1]
    assert second[1:] == ("", "")


def test_sigterm_to_one_process_ends_all_with_a_checkpoint(folder: Path, found: Found) -> None:
    for result in found[2]:
        assert result["terminated"]["code"] == 143
        assert "a checkpoint was written" in result["terminated"]["error"]
    state, damaged = load_checkpoint(folder / "2" / "terminated" / "checkpoints")
    assert not damaged
    assert state is not None
    # In the middle of an epoch of ten steps, after the one that was under way.
    assert state["step"] == 8
    assert state["processes"] == 2


@pytest.mark.parametrize(
    ("batch", "processes", "values"), [(7, 2, "6 or 8"), (2, 3, "3"), (100, 8, "96 or 104")]
)
def test_a_batch_must_be_shared_equally(batch: int, processes: int, values: str) -> None:
    with pytest.raises(UsageError, match=rf"by {processes} processes; give {values}\."):
        check_shared_batch(batch, processes)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("auto", 1) == torch.device("cuda", 1)
    assert own_device("cpu", 1) == torch.device("cpu")
    with pytest.raises(UsageError, match=r"'cuda:0' is one GPU for several processes"):
        own_device("cuda:0", 0)
    with pytest.raises(UsageError, match=r"process 3 of this node has no GPU: 2 are visible"):
        own_device("cuda", 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_see_other_images_are_refused(rank: int) -> None:
    class Two(World):
        def all_of(self, value: Any) -> list[Any]:
            return [{"source": "a", "target": "b"}, {"source": "a", "target": "c"}]

    with pytest.raises(DataError, match=r"process 2 of 2 finds other target images") as caught:
        check_same_data({}, Two(rank=rank, size=2))
    assert caught.value.told_elsewhere == (rank != 0)


def test_a_malformed_variable_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UsageError, match=r"WORLD_SIZE is 'two', not a number"),
        joined_world("cpu"),
    ):
        pass
