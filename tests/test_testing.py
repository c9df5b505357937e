"""The kit for plugin authors: what it makes, and that its checks find planted faults."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext, TaskInfo
from daptkit.plugin import NoOptions
from daptkit.testing import (
    assert_aligns_images,
    assert_global_batch,
    gap_of_means,
    imports_torch,
    make_batch,
    make_step,
    make_task,
)


class MeanGap(Method):
    """Squared gap of weighted means over the global batch."""

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        assert source is not None
        means = [
            (ctx.gather(b.weights) @ ctx.gather(b.features)) / ctx.gather(b.weights).sum()
            for b in (source, target)
        ]
        return {"gap": (means[0] - means[1]).square().sum()}


class PerProcessWeights(MeanGap):
    """Normalises by its own process's sum of weights."""

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        assert source is not None
        means = [
            ctx.gather((b.weights / b.weights.sum())[:, None] * b.features).sum(0) / 2
            for b in (source, target)
        ]
        return {"gap": (means[0] - means[1]).square().sum()}


class Nothing(MeanGap):
    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        return {}


class Sharpness(Method):
    """Of the target's predictions alone: no feature takes part."""

    gathers = True

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        logits = ctx.gather(target.logits) if self.gathers else target.logits
        return {"sharpness": torch.softmax(logits, 1).square().mean()}


class LocalSharpness(Sharpness):
    gathers = False


class Brightness(Method):
    """Moves the target's mean to the source's."""

    def __init__(self, options: object, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("shift", torch.zeros(()))

    def fit_images(self, source: Tensor, target: Tensor) -> None:
        self.shift = source.mean() - target.mean()

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images if domain == "source" else images + self.shift


class OfTheBatch(Brightness):
    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images - images.mean() + 0.5


class NoBuffer(Brightness):
    def fit_images(self, source: Tensor, target: Tensor) -> None:
        self.found = source.mean() - target.mean()

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images + getattr(self, "found", 0.0)


class Growing(Brightness):
    def fit_images(self, source: Tensor, target: Tensor) -> None:
        self.shift = source.mean((0, 2, 3)) - target.mean((0, 2, 3))


class Smaller(Brightness):
    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images[..., ::2]


class Dividing(Brightness):
    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images / (images - images)


def make(cls: type[Method]) -> Method:
    return cls(NoOptions(), make_task())


def test_global_batch_check_passes_what_gathers_and_finds_what_does_not() -> None:
    assert_global_batch(make(MeanGap))
    with pytest.raises(AssertionError):
        assert_global_batch(make(PerProcessWeights))
    with pytest.raises(AssertionError, match="no loss"):
        assert_global_batch(make(Nothing))


def test_global_batch_check_of_a_method_that_reads_predictions_only() -> None:
    assert_global_batch(make(Sharpness))
    with pytest.raises(AssertionError):
        assert_global_batch(make(LocalSharpness))


def test_the_check_of_image_alignment_finds_planted_faults() -> None:
    source, target = torch.rand(4, 3, 5, 5), 0.5 * torch.rand(3, 3, 5, 5)
    assert_aligns_images(make(Method), source, target)
    assert_aligns_images(make(Brightness), source, target)
    for broken, words in (
        (OfTheBatch, "depends on others of the batch"),
        (NoBuffer, "not all that was fitted is in buffers"),
        (Growing, "changed the shape of a buffer"),
        (Smaller, "the shape of the images changed"),
        (Dividing, "not finite"),
    ):
        with pytest.raises(AssertionError, match=words):
            assert_aligns_images(make(broken), source, target)


def test_gap_of_means_closes_under_a_loss_that_aligns() -> None:
    before, after = gap_of_means(make(MeanGap))
    assert after < 0.01 * before


def test_batches_are_the_same_numbers_in_every_type() -> None:
    full, half = make_batch(4, 1, shift=1.0), make_batch(4, 1, shift=1.0, dtype=torch.bfloat16)
    torch.testing.assert_close(half.features.float(), full.features, rtol=0.01, atol=0.01)
    assert full.features.shape == (4, 6) and full.logits.shape == (4, 3)
    assert full.labels is None and full.features.requires_grad
    wide = make_batch(2, 0, task=make_task(num_classes=5, features=7))
    assert wide.features.shape == (2, 7) and wide.logits.shape == (2, 5)


def test_step_takes_any_field() -> None:
    step = make_step(0.25, step=7, class_weights=torch.tensor([1.0, 2.0]))
    assert (step.progress, step.step, step.class_weights.tolist()) == (0.25, 7, [1.0, 2.0])


def test_imports_of_torch_are_seen() -> None:
    assert imports_torch("daptkit.testing")
    assert not imports_torch("daptkit.plugin")
