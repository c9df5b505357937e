"""Checks of what an owner of the role ``inputs`` makes of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from daptkit.errors import DaptkitError
from daptkit.method import Method
from daptkit.testing.answer_checks import CLOSED
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable, ensure
from daptkit.testing.checks import assert_aligns_images

_IMAGES, _EDGE, _COARSE = 12, 16, 4
_UNMOVED = 0.02
"""Mean change of a level that counts as none."""

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "other grey levels": lambda x: 0.05 + 0.6 * x**1.5,
    "another colour": lambda x: x * x.new_tensor([0.9, 0.7, 0.5])[:, None, None] + 0.1,
}
"""What a site does to its images, (N, 3, H, W) in [0, 1]."""
_CHANGED = {"intensity", "contrast", "colour"}


def aligned_images(case: MethodCase) -> None:
    """Aligned images keep their shape and stay finite, each by itself, and all state is kept."""
    _ensure_owner(case)
    source, target = _images(0), CHANGES["other grey levels"](_images(1))
    assert_aligns_images(case.create().cpu(), source, target)
    one_level = torch.full_like(target, 0.5)
    for pair in ((source, one_level), (one_level, target), (one_level, one_level)):
        try:
            method = _fitted_to_images(case, *pair)
        except DaptkitError:  # it refuses images of a single level, which is as good
            continue
        for domain, images in zip(("source", "target"), pair, strict=True):
            found = _aligned(case, method, images, domain)
            ensure(bool(found.isfinite().all()), f"{domain} images of a single level: not finite")


def known_appearance(case: MethodCase) -> None:
    """Half of a known change of grey levels or colours is undone; sites that agree stay."""
    _ensure_owner(case)
    source, plain = _images(0), _images(1)
    method = _fitted_to_images(case, source, source)
    moved = float((_aligned(case, method, source, "target") - source).abs().mean())
    ensure(
        moved < _UNMOVED,
        f"target images that are the source's own are changed, by {moved:.2f} of the grey scale",
    )
    corrects = case.loaded.spec.corrects
    if corrects and not corrects & _CHANGED:
        raise NotApplicable(f"it corrects {', '.join(sorted(corrects))}, not levels or colours")
    found = []
    for kind, change in CHANGES.items():
        target = change(plain)
        method = _fitted_to_images(case, source, target)
        here, there = (
            _aligned(case, method, images, domain)
            for images, domain in ((source, "source"), (target, "target"))
        )
        gaps = _gap_of_sites(source, target), _gap_of_sites(here, there)
        if gaps[1] < CLOSED * gaps[0]:
            return
        found.append(f"{kind} of distance {gaps[0]:.2f} becomes {gaps[1]:.2f}")
    raise CheckFailed(f"it leaves a known change of appearance: {'; '.join(found)}")


def _ensure_owner(case: MethodCase) -> None:
    if "inputs" not in case.loaded.spec.roles:
        raise NotApplicable("it does not own 'inputs'")


def _images(seed: int) -> Tensor:
    """Return smooth colour images of a site, (N, 3, H, W) in [0.1, 0.9]."""
    coarse = torch.rand(_IMAGES, 3, _COARSE, _COARSE, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(0.1 + 0.8 * coarse, size=_EDGE, mode="bilinear")


def _fitted_to_images(case: MethodCase, source: Tensor, target: Tensor) -> Method:
    """Return the method fitted on the CPU, as a run does it, on the device of the case."""
    method = case.create().cpu()
    with torch.no_grad():
        method.fit_images(source.clone(), target.clone())
    return method.to(case.device).eval()


def _aligned(case: MethodCase, method: Method, images: Tensor, domain: str) -> Tensor:
    with torch.no_grad():
        found = method.align_images(images.clone().to(case.device), domain)
    return found.clamp(0.0, 1.0).cpu()


def _gap_of_sites(source: Tensor, target: Tensor) -> float:
    """Return the distance of means and spreads of the channels, over the source's variance."""
    s, t = (x.transpose(0, 1).flatten(1).double() for x in (source, target))
    apart = (s.mean(1) - t.mean(1)).square() + (s.std(1) - t.std(1)).square()
    return float((apart / s.var(1)).mean())


IMAGE_CHECKS = (aligned_images, known_appearance)
