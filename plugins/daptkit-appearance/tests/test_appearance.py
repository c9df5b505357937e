"""What histmatch, colour and fda have in common: no shift, no change; one image, one result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.errors import DataError, UsageError
from daptkit.method import Method
from daptkit.plugin import build_options
from daptkit.shift import image_statistics
from daptkit.testing import assert_aligns_images, imports_torch, make_task
from daptkit_appearance.colour import Colour
from daptkit_appearance.fda import FDA
from daptkit_appearance.histmatch import HistMatch
from daptkit_appearance.plugin import daptkit_methods
from daptkit_appearance.sample import foreground, site_pixels

CLASSES: dict[str, type[Method]] = {"histmatch": HistMatch, "colour": Colour, "fda": FDA}
SPECS = {spec.name: spec for spec in daptkit_methods()}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("histmatch", {}),
    ("histmatch", {"foreground": False, "quantiles": 64}),
    *(("colour", {"space": space}) for space in ("lab", "ycbcr", "rgb", "density")),
    ("colour", {"kind": "covariance", "space": "lab"}),
    ("colour", {"kind": "covariance", "space": "rgb"}),
    ("colour", {"kind": "covariance", "space": "density"}),
    ("colour", {"kind": "macenko"}),
    ("fda", {"band": 0.1}),
    ("fda", {"band": 0.1, "mode": "swap"}),
]
each_kind = pytest.mark.parametrize(
    ("name", "options"),
    KINDS,
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)


def make(name: str, **options: Any) -> Method:
    spec = SPECS[name]
    return CLASSES[name](build_options(spec.options, options, f"{name}."), make_task())


def slides(n: int, seed: int, *, size: int = 24) -> Tensor:
    """Return images of two stains on a bright slide, 8 bit, (n, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(n, 2, size // 4, size // 4, generator=generator) ** 2
    amounts = torch.nn.functional.interpolate(blobs, size=(size, size), mode="bilinear")
    stains = torch.tensor([[0.65, 0.70, 0.29], [0.15, 0.95, 0.25]])
    density = torch.einsum("nahw,ac->nchw", 1.2 * amounts, stains)
    noisy = (-density).exp() + 0.01 * torch.randn(n, 3, size, size, generator=generator)
    return (noisy.clamp(0, 1) * 255).round() / 255


def other_site(images: Tensor) -> Tensor:
    """Return images as another lamp and camera show them: darker, less contrast, warmer."""
    gain = torch.tensor([0.85, 0.75, 0.55]).view(1, 3, 1, 1)
    return ((0.04 + gain * images**1.2) * 255).round() / 255


@pytest.fixture(scope="module")
def source() -> Tensor:
    return slides(12, 1)


@pytest.fixture(scope="module")
def target() -> Tensor:
    return other_site(slides(10, 2))


def fitted(name: str, source: Tensor, target: Tensor, **options: Any) -> Method:
    method = make(name, **options)
    method.fit_images(source, target)
    return method


@each_kind
def test_equal_sites_are_left_as_they_are(
    name: str, options: dict[str, Any], source: Tensor
) -> None:
    if options.get("mode") == "swap":
        source = source[:1]  # the mean of one image's amplitudes is its own
    aligned = fitted(name, source, source.clone(), **options).align_images(source, "target")
    torch.testing.assert_close(aligned, source, atol=2e-5, rtol=0)


@each_kind
def test_target_comes_nearer_and_source_stays(
    name: str, options: dict[str, Any], source: Tensor, target: Tensor
) -> None:
    method = fitted(name, source, target, **options)
    aligned = method.align_images(target, "target")
    assert aligned.shape == target.shape and aligned.dtype == torch.float32
    assert aligned.min() >= 0 and aligned.max() <= 1
    gap = [float((x.mean((0, 2, 3)) - source.mean((0, 2, 3))).norm()) for x in (target, aligned)]
    assert gap[1] < 0.3 * gap[0]
    assert torch.equal(method.align_images(source, "source"), source)


@each_kind
def test_strength(name: str, options: dict[str, Any], source: Tensor, target: Tensor) -> None:
    none, half, whole = (
        fitted(name, source, target, strength=s, **options).align_images(target, "target")
        for s in (0.0, 0.5, 1.0)
    )
    assert torch.equal(none, target)
    # Only where the whole way was clipped is the half way more than half of it.
    inside = (whole > 0) & (whole < 1)
    torch.testing.assert_close(half[inside], ((target + whole) / 2)[inside], atol=1e-6, rtol=0)
    assert (whole - target).abs().max() > 0.05


@each_kind
def test_an_image_does_not_depend_on_its_batch(
    name: str, options: dict[str, Any], source: Tensor, target: Tensor
) -> None:
    method = fitted(name, source, target, **options)
    whole = method.align_images(target, "target")
    parts = [method.align_images(part, "target") for part in target.split([1, 3, 6])]
    assert torch.equal(torch.cat(parts), whole)


@each_kind
def test_state_has_one_shape_and_is_all_there_is(
    name: str, options: dict[str, Any], source: Tensor, target: Tensor
) -> None:
    assert_aligns_images(make(name, **options), source, target)
    method, fresh = fitted(name, source, target, **options), make(name, **options)
    torch.testing.assert_close(fresh.align_images(target, "target"), target, atol=2e-5, rtol=0)
    fresh.load_state_dict(method.state_dict())
    expected = method.align_images(target, "target")
    assert torch.equal(fresh.align_images(target, "target"), expected)
    assert fresh.report() == method.report()
    again = fitted(name, source, target, **options)
    for key, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@each_kind
def test_aligning_twice_changes_nothing_more(
    name: str, options: dict[str, Any], source: Tensor, target: Tensor
) -> None:
    once = fitted(name, source, target, **options).align_images(target, "target")
    twice = fitted(name, source, once, **options).align_images(once, "target")
    assert (twice - once).abs().mean() < 0.1 * (once - target).abs().mean()


@each_kind
def test_gradient_is_finite(
    name: str, options: dict[str, Any], source: Tensor, target: Tensor
) -> None:
    images = target.clone()
    images[0], images[1], images[2, :, :4] = 0.0, 1.0, 0.0
    images.requires_grad_()
    aligned = fitted(name, source, target, **options).align_images(images, "target")
    (gradient,) = torch.autograd.grad(aligned.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@each_kind
@pytest.mark.parametrize("constant", ["source", "target", "both"])
def test_constant_sites_give_finite_images(
    name: str, options: dict[str, Any], constant: str, source: Tensor, target: Tensor
) -> None:
    colour = torch.tensor([0.9, 0.7, 0.2]).view(1, 3, 1, 1)
    s = colour.expand_as(source) if constant != "target" else source
    t = (0.5 * colour).expand_as(target) if constant != "source" else target
    method = fitted(name, s, t, **options)
    aligned = method.align_images(t, "target")
    assert aligned.isfinite().all()
    assert aligned.var((2, 3)).max() <= 1e-10 or constant == "source"  # no structure of no signal
    notes: list[str] = []
    method.on_fit_start(type("Context", (), {"note": staticmethod(notes.append)})())  # type: ignore[arg-type]
    assert len(notes) == 1 and notes[0].startswith(f"{name}: ")


@pytest.mark.parametrize("name", CLASSES)
def test_images_that_cannot_be_compared(name: str, source: Tensor) -> None:
    method = make(name)
    broken = source.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=f"{name}: target images hold values"):
        method.fit_images(source, broken)
    with pytest.raises(DataError, match="channels"):
        method.fit_images(source, source[:, :1])
    with pytest.raises(DataError, match=f"{name} needs source images"):
        method.fit_images(source[:0], source)
    with pytest.raises(UsageError, match="at most 8 channels"):
        method.fit_images(source.repeat(1, 3, 1, 1), source.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("name", CLASSES)
def test_what_it_says_to_correct_gets_smaller(name: str, source: Tensor) -> None:
    target = other_site(slides(40, 2, size=48))
    source = slides(40, 1, size=48)
    aligned = fitted(name, source, target).align_images(target, "target")
    measured = {
        "intensity": ("intensity_mean",),
        "contrast": ("contrast",),
        "colour": ("red_mean", "green_mean", "blue_mean"),
        "shading": (),
    }
    s, t, a = (image_statistics(x.numpy()) for x in (source, target, aligned))
    for name_of in (n for p in SPECS[name].corrects for n in measured[p]):
        before, after = (abs(float(np.mean(x[name_of]) - np.mean(s[name_of]))) for x in (t, a))
        assert after < 0.5 * before, name_of


def test_foreground_of_grey_images() -> None:
    generator = torch.Generator().manual_seed(3)
    image = 0.3 + 0.4 * torch.rand(3, 1, 20, 20, generator=generator)
    expected = torch.ones(3, 20, 20, dtype=torch.bool)
    image[0, :, :4], image[0, :, :, -3:] = 0.0, 1.0  # padding above, white to the right
    expected[0, :4], expected[0, :, -3:] = False, False
    image[1, :, :, :5] = 0.03 + 0.02 * torch.rand(1, 20, 5, generator=generator)  # collimation
    expected[1, :, :5] = False
    image[1, :, 10, 10] = 1.0  # saturated
    expected[1, 10, 10] = False
    image[2, :, 9:11] = 0.5  # flat, but not at the border
    assert torch.equal(foreground(image, grey=True), expected)
    assert not foreground(torch.full((1, 1, 9, 9), 0.5), grey=True).any()


def test_the_empty_slide_is_no_padding() -> None:
    image = slides(1, 5)
    image[:, :, :5], image[:, :, :, :2] = 1.0, 0.0
    kept = foreground(image, grey=False)[0]
    assert kept[:5, 2:].all() and not kept[:, :2].any()


def test_large_samples_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch, source: Tensor) -> None:
    every = site_pixels(source, grey=False)
    assert len(every) == 12 * 24 * 24 and every.dtype == torch.float64
    monkeypatch.setattr("daptkit_appearance.sample._PIXELS", 1000)
    some = site_pixels(source, grey=False)
    assert len(some) == 1000
    assert torch.equal(some, every[torch.arange(1000) * len(every) // 1000])


def test_specifications() -> None:
    assert list(SPECS) == ["histmatch", "colour", "fda"]
    for spec in SPECS.values():
        assert spec.roles == {"inputs"} and spec.trains == "none" and spec.corrects
        with pytest.raises(UsageError, match=f"{spec.name}.strength"):
            build_options(spec.options, {"strength": 1.5}, f"{spec.name}.")
    assert not imports_torch("daptkit_appearance.plugin")
