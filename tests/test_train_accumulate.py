"""A batch in parts: the gradient of the whole, what methods see, and runs that are continued."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import NonFiniteLossError, Terminated, UsageError
from daptkit.host import load_methods
from daptkit.method import Method
from daptkit.recipes import adapt
from daptkit.train.accumulate import Accumulator, check_parts
from daptkit.train.device import derive_seed
from daptkit.train.domains import DomainInputs
from daptkit.train.loop import Trainer
from daptkit.train.step import StepResult
from fakes import in_process, make_job, method_of, tiny_config

BATCH = 12
WEIGHTS = [0.2, 1.0, 2.5]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def inputs(seed: int, *, labels: bool) -> DomainInputs:
    generator = torch.Generator().manual_seed(seed)
    return DomainInputs(
        inputs=torch.rand(BATCH, 1, 16, 16, generator=generator, dtype=torch.float64),
        rows=torch.arange(BATCH),
        groups=torch.arange(BATCH),
        # The first part holds one class, so its weight is another than that of the rest.
        labels=torch.tensor([0, 0, 0, 0, 1, 2, 2, 1, 2, 2, 0, 2]) if labels else None,
    )


def passed(
    folder: Path, parts: int, method: type[Method] | None = None, weights: list[float] = WEIGHTS
) -> tuple[StepResult, torch.Tensor]:
    """Pass one batch in float64; return its losses and the gradient of all parameters."""
    config = tiny_config(folder, batch_size=BATCH, grad_accum_steps=parts)
    job, _ = make_job(config, *([in_process(method)] if method else []))
    trainer = Trainer(job)
    trainer.module.double().train()
    result = Accumulator(job, trainer.updater).run(
        trainer.module,
        inputs(0, labels=True),
        inputs(1, labels=False) if method else None,
        step=5,
        generator=torch.Generator(),
        progress=0.5,
        class_weights=torch.tensor(weights, dtype=torch.float64),
        target_prior=None,
        from_trunk=False,
    )
    return result, torch.cat([p.grad.flatten() for p in trainer.module.parameters()])


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_the_gradient_of_the_classification_loss_is_that_of_the_whole_batch(
    tmp_path: Path, parts: int
) -> None:
    def mean(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        assert len(source) == len(target) == BATCH // parts or len(source) == BATCH
        ctx.log("mean", target.features.mean())
        return {"mean": target.features.mean()}  # of equal parts its mean is that of the whole

    for method in (None, method_of(mean)):
        whole, expected = passed(tmp_path, 1, method)
        split, gradient = passed(tmp_path, parts, method)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-12
        assert split.losses.keys() == whole.losses.keys()
        assert split.logs.keys() == whole.logs.keys()
        for name, value in {**whole.losses, **whole.logs}.items():
            found = {**split.losses, **split.logs}[name]
            # What is logged is kept in single precision.
            assert float(found) == pytest.approx(float(value), rel=1e-6), name
        assert float(split.losses["classification"]) == pytest.approx(
            float(whole.losses["classification"]), rel=1e-13
        )


def test_images_without_weight_make_no_loss(tmp_path: Path) -> None:
    result, gradient = passed(tmp_path, 3, weights=[0.0, 0.0, 0.0])
    assert float(result.losses["classification"]) == 0.0
    assert not gradient.any()


def test_a_method_meets_each_part_with_numbers_of_its_own(tmp_path: Path) -> None:
    drawn: dict[int, list[tuple[float, float]]] = {}
    seen: list[int] = []

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        pair = (float(torch.rand((), generator=ctx.generator)), float(torch.rand(())))
        drawn.setdefault(parts, []).append(pair)
        seen.extend(target.index.tolist())
        return {"x": target.features.mean() * len(drawn[parts])}

    for parts in (1, 3):
        seen.clear()
        passed(tmp_path, parts, method_of(losses))
        assert seen == list(range(BATCH))
    assert len(set(drawn[3])) == 3
    # A batch in one part draws what it drew before there were parts.
    assert drawn[1] == drawn[3][:1]
    generator = torch.Generator().manual_seed(derive_seed(0, 5, 3))
    assert drawn[1][0][0] == float(torch.rand((), generator=generator))


def test_seeds_of_steps_parts_and_streams_differ() -> None:
    seeds = [
        derive_seed(seed, step, stream, *part)
        for seed in range(3)
        for step in range(100)
        for stream in range(4)
        for part in [(), (1,), (2,), (3,), (4,)]
    ]
    assert len(set(seeds)) == len(seeds)


class Noisy(Method):
    """Draws numbers, and may end the run."""

    kill_at = -1

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        shake = torch.rand((), generator=ctx.generator) + torch.rand(())
        return {"pull": (target.features.mean() - source.features.mean()).square() * shake}


def trained(folder: Path, **more: Any) -> tuple[bytes, dict[str, torch.Tensor]]:
    config = tiny_config(folder, dropout=0.2, aug="digits", clip_grad=1.0, grad_accum_steps=4)
    job, _ = make_job(config, in_process(type("Method", (Noisy,), more)))
    Trainer(job).run()
    assert job.folder is not None
    return job.folder.metrics.read_bytes(), job.net.state_dict()


def test_a_run_in_parts_continues_bit_for_bit(tmp_path: Path) -> None:
    metrics, weights = trained(tmp_path / "whole")
    with pytest.raises(Terminated):
        trained(tmp_path / "cut", kill_at=17)
    again, continued = trained(tmp_path / "cut")
    assert again == metrics
    assert all(torch.equal(continued[name], value) for name, value in weights.items())


def test_parts_are_averaged_where_they_make_another_loss(tmp_path: Path) -> None:
    (coral,) = load_methods(["coral"])
    found = {}
    for parts in (1, 4):
        config = tiny_config(tmp_path, grad_accum_steps=parts)
        job, _ = make_job(config, coral, out=tmp_path / str(parts))
        Trainer(job).run()
        lines = (tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()
        found[parts] = json.loads(lines[-2])["values"]
    assert found[1].keys() == found[4].keys()
    assert found[1] != found[4]


def test_a_bad_loss_of_any_part_is_named(tmp_path: Path) -> None:
    calls: list[int] = []

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        calls.append(ctx.step)
        bad = ctx.step == 2 and calls.count(2) == 2
        return {"x": target.features.mean() * (float("nan") if bad else 1.0)}

    job, _ = make_job(tiny_config(tmp_path, grad_accum_steps=2), in_process(method_of(losses)))
    with pytest.raises(NonFiniteLossError, match="'fake/x' is not finite at step 2"):
        Trainer(job).run()


@pytest.mark.parametrize(
    ("batch", "parts", "words"),
    [
        (64, 3, r"--grad-accum-steps 2 or 4, or --batch-size 63 or 66\.$"),
        (8, 16, r"--grad-accum-steps 8, or --batch-size 16\.$"),
        (7, 2, r"--grad-accum-steps 1 or 7, or --batch-size 6 or 8\.$"),
    ],
)
def test_parts_that_cannot_be_equal_are_refused(batch: int, parts: int, words: str) -> None:
    with pytest.raises(UsageError, match=rf"^--grad-accum-steps {parts} does not split.*{words}"):
        check_parts(batch, parts)
    check_parts(64, 16)


def test_they_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not split 8 images into equal parts"):
        adapt(tiny_config(tmp_path, grad_accum_steps=3))
    assert not (tmp_path / "run").exists()


def test_parts_belong_to_the_run_and_to_its_twin(tmp_path: Path) -> None:
    adapt(tiny_config(tmp_path))
    with pytest.raises(UsageError, match="started with another --grad-accum-steps"):
        adapt(tiny_config(tmp_path, grad_accum_steps=2, resume=True))
    other = adapt(tiny_config(tmp_path, grad_accum_steps=2, out=str(tmp_path / "other")))
    assert (other.out / "metrics.jsonl").read_bytes() != (
        tmp_path / "run" / "metrics.jsonl"
    ).read_bytes()


def test_parts_of_one_image_are_too_little_for_batchnorm(tmp_path: Path) -> None:
    job, _ = make_job(tiny_config(tmp_path, model="test_resnet", grad_accum_steps=8))
    with pytest.raises(UsageError, match=r"--grad-accum-steps 8 leaves.* 4 or fewer"):
        Trainer(job).run()
