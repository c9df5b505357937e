"""Held-out logits: the validation images where there are enough, else patient-grouped folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daptkit.method import Method
from daptkit.run import RunFolder
from daptkit.shift.calibration import MIN_IMAGES_PER_CLASS
from daptkit.train.adaptation import run_adaptation
from daptkit.train.crossfit import FOLDS, held_out
from daptkit.train.progress import SilentReporter
from fakes import in_process, make_job, tiny_config

FROZEN = {
    "finetune": "frozen",
    "aug": "auto",
    "model": "resnet18",
    "img_size": None,
    "bottleneck": 256,
}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk")
    return run_adaptation(tiny_config(folder), SilentReporter()).result.out / "model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def frozen_job(folder: Path, trunk: Path, *methods: Any) -> tuple[Any, Any]:
    return make_job(tiny_config(folder, init_from=str(trunk), **FROZEN), *methods)


def with_patients(data: Any, n: int) -> Any:
    """The same data with ``n`` patients."""
    groups = np.arange(len(data.source)) % n
    return replace(data, source=replace(data.source, groups=groups))


def test_small_frozen_tasks_are_cross_fitted(tmp_path: Path, trunk: Path) -> None:
    seen: list[Any] = []

    class Watcher(Method):
        def on_fit_start(self, ctx: Any) -> None:
            parts = [ctx.predict(split) for split in ("source_train", "source_val")]
            seen.append([set(part.groups.tolist()) for part in parts])
            assert ctx.task.n_source == len(parts[0])
            shares = np.bincount(parts[0].labels.numpy(), minlength=3) / len(parts[0])
            assert ctx.task.source_prior.numpy() == pytest.approx(shares)

    job, maker = frozen_job(tmp_path, trunk, in_process(Watcher))
    data = with_patients(job.data, 24)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    first = held_out(data, np.zeros((len(data.val_rows), 3)), maker.make)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert first.folds == FOLDS
    everything = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    assert np.array_equal(first.labels, data.source.labels[everything])
    assert len(seen) == FOLDS
    assert all(not inside & outside for inside, outside in seen)
    assert set.union(*(outside for _, outside in seen)) == set(range(24))
    assert (first.logits.argmax(1) == first.labels).mean() > 0.6
    again = held_out(data, np.zeros((len(data.val_rows), 3)), maker.make)
    assert np.array_equal(first.logits, again.logits)


def test_enough_validation_images_are_used_as_they_are(tmp_path: Path) -> None:
    job, maker = make_job(tiny_config(tmp_path))
    labels = job.data.source.labels[job.data.val_rows]
    assert np.bincount(labels).min() < MIN_IMAGES_PER_CLASS
    logits = np.random.default_rng(0).normal(size=(len(labels), 3))
    found = held_out(job.data, logits, maker.make)  # fully fine-tuned: no fold is trained
    assert found.folds == 1
    assert np.array_equal(found.logits, logits)
    assert np.array_equal(found.labels, labels)


def test_a_class_of_one_patient_is_not_cross_fitted(tmp_path: Path, trunk: Path) -> None:
    job, maker = frozen_job(tmp_path, trunk)
    data = with_patients(job.data, 24)
    data.source.groups[data.source.labels == 2] = 99
    found = held_out(data, np.zeros((len(data.val_rows), 3)), maker.make)
    assert found.folds == 1


def test_the_twins_folds_are_trained_once(
    tmp_path: Path, trunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(data: Any, logits: Any, make: Any) -> Any:
        calls.append(1)
        return held_out(data, logits, make)

    monkeypatch.setattr("daptkit.train.models.held_out", counted)
    outs = []
    for name in ("a", "b"):
        config = tiny_config(
            tmp_path, init_from=str(trunk), out=str(tmp_path / name), epochs=1, **FROZEN
        )
        outs.append(RunFolder(run_adaptation(config, SilentReporter()).result.out))
    assert len(calls) == 1
    assert outs[0].predictions.read_bytes() == outs[1].predictions.read_bytes()
