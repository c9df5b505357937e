"""A method under check: how it is made, called and given batches, on any device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from daptkit.host import LoadedMethod
from daptkit.method import DomainBatch, Method, StepContext, TaskInfo
from daptkit.testing.made import make_batch, make_step, make_task

CPU = torch.device("cpu")
_EXTRA_LAYER = 7
"""Size of a tapped layer other than features and logits."""
_EDGE = 4
_CHANNELS = 3


class CheckFailed(AssertionError):
    """What a check found wrong, in one line."""


class NotApplicable(Exception):
    """Why a check has nothing to say of a plugin, in one line."""


def ensure(good: bool, text: str) -> None:
    """Fail the check with a line unless ``good``.

    Raises:
        CheckFailed: it is not.
    """
    if not good:
        raise CheckFailed(text)


@dataclass(frozen=True)
class Result:
    """Losses of one call, and the method that returned them."""

    losses: dict[str, Tensor]
    method: Method

    @property
    def total(self) -> Tensor:
        """Sum of the losses, as the host takes it."""
        return torch.stack([value.float() for value in self.losses.values()]).sum()


@dataclass(frozen=True)
class Pair:
    """One batch of each domain; no source for methods that do without."""

    source: DomainBatch | None
    target: DomainBatch

    @property
    def batches(self) -> dict[str, DomainBatch]:
        """The batches by domain."""
        both = {"source": self.source, "target": self.target}
        return {name: batch for name, batch in both.items() if batch is not None}

    @property
    def leaves(self) -> dict[str, list[Tensor]]:
        """Tensors of each domain that gradients reach, the taps of the model."""
        return {name: list(batch.taps.values()) for name, batch in self.batches.items()}

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Pair:
        """Return both batches with a function applied to each tensor."""
        source = None if self.source is None else map_batch(self.source, function)
        return Pair(source, map_batch(self.target, function))


@dataclass(frozen=True, kw_only=True)
class MethodCase:
    """A method and where to check it.

    Args:
        loaded: the method.
        module: its torch-free half; ``None`` where it has none, as in a test.
        device: where tensors are; ``"meta"`` tensors have shapes and no values.
    """

    loaded: LoadedMethod
    module: str | None = None
    device: torch.device = CPU

    @functools.cached_property
    def task(self) -> TaskInfo:
        """A task of three classes with a size for each layer that the method reads."""
        task = make_task()
        layers = tuple(getattr(self.loaded.load_factory(), "layers", ()))
        return replace(task, dims={**dict.fromkeys(layers, _EXTRA_LAYER), **task.dims})

    @property
    def needs_source(self) -> bool:
        """Whether the method asks for source images."""
        return "source" in self.loaded.spec.needs

    def at(self, device: str) -> MethodCase:
        """Return the same method on another device."""
        return replace(self, device=torch.device(device))

    def create(self) -> Method:
        """Make the method with its default options, always from the same random numbers.

        Dropout is off, so that two calls can be compared.
        """
        with self.seeded():
            made = self.loaded.create(self.loaded.spec.options(), self.task)
        for module in made.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
        return made.to(self.device)

    def draw(
        self, n: int, seed: int, *, domain: str = "target", shift: float = 0.0, views: int = 2
    ) -> DomainBatch:
        """Return a batch with everything that a step of this method would hold.

        Args:
            n: images N.
            seed: of all numbers.
            domain: ``"source"``, whose images have labels where the method needs them, or
                ``"target"``.
            shift: added to every feature.
            views: further views of the images, for methods that need them.
        """
        task, spec = self.task, self.loaded.spec
        batch = make_batch(n, seed, shift=shift, task=task)
        generator = torch.Generator().manual_seed(seed + 1000)
        extra = {
            layer: torch.randn(n, size, generator=generator).requires_grad_()
            for layer, size in task.dims.items()
            if layer not in batch.taps
        }
        labels = torch.randint(0, task.num_classes, (n,), generator=generator)
        more = range(views if "target_views" in spec.needs and domain == "target" else 0)
        batch = replace(
            batch,
            taps={**batch.taps, **extra},
            inputs=torch.rand(n, _CHANNELS, _EDGE, _EDGE, generator=generator),
            labels=labels if domain == "source" and "source_labels" in spec.needs else None,
            views=tuple(self.draw(n, seed + 2000 * (1 + k), views=0) for k in more),
        )
        return leaves_again(map_batch(batch, lambda x: x.to(self.device)))

    def pair(self, n: int = 6, m: int = 4, *, seed: int = 0, shift: float = 0.5) -> Pair:
        """Return batches of N source and M target images.

        Source weights differ from image to image, as those of classes would.
        """
        target = self.draw(m, 2 * seed + 2, shift=shift)
        if not self.needs_source:
            return Pair(None, target)
        source = self.draw(n, 2 * seed + 1, domain="source")
        weights = torch.linspace(0.4, 1.9, n, device=self.device) if n > 1 else source.weights
        return Pair(replace(source, weights=weights), target)

    def step(self, progress: float = 1.0, **values: Any) -> StepContext:
        """Return the context of a step on the device; see :func:`daptkit.testing.make_step`."""
        known = {
            "class_weights": torch.ones(self.task.num_classes, device=self.device),
            "generator": self._generator(),
            "forward": self._forward,
            **values,
        }
        return make_step(progress, **known)

    def call(self, pair: Pair, *, method: Method | None = None, **step: Any) -> Result:
        """Return the losses of one step, by default of a method that has just been made.

        Raises:
            NotApplicable: there are none, and the specification says so.
            CheckFailed: there are none all the same, or something else than a dict.
        """
        made = self.create() if method is None else method
        with self.seeded():
            losses: Any = made.losses(pair.source, pair.target, self.step(**step))
        ensure(
            isinstance(losses, dict),
            f"losses() returns {type(losses).__name__}, not a dict of named losses",
        )
        if not losses and self.loaded.spec.trains == "none":
            raise NotApplicable("it has no loss")
        trains = self.loaded.spec.trains
        ensure(bool(losses), f"losses() is empty, and the specification says it trains {trains!r}")
        return Result(losses, made)

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Let the block draw the same random numbers each time, and nobody else notice."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            yield

    def _generator(self) -> torch.Generator:
        place = "cpu" if self.device.type == "meta" else self.device
        return torch.Generator(place).manual_seed(0)

    def _forward(self, inputs: Tensor) -> DomainBatch:
        """Stand in for the model on further inputs of the target: fixed linear layers."""
        n, flat = len(inputs), inputs.flatten(1).float()
        generator = torch.Generator().manual_seed(7)
        taps = {
            layer: flat @ torch.randn(flat.shape[1], size, generator=generator).to(flat.device)
            for layer, size in self.task.dims.items()
        }
        rows = torch.full((n,), -1, device=flat.device)
        ones = torch.ones(n, device=flat.device)
        return DomainBatch(
            logits=taps["logits"], taps=taps, inputs=inputs, weights=ones, groups=rows, index=rows
        )


def map_batch(batch: DomainBatch, function: Callable[[Tensor], Tensor]) -> DomainBatch:
    """Return a batch with a function applied to each of its tensors, to shared ones once."""
    known: dict[int, Tensor] = {}

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in known:
                known[id(value)] = function(value)
            return known[id(value)]
        if isinstance(value, Mapping):
            return {key: of(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(map_batch(item, function) for item in value)
        return value

    return replace(batch, **{f.name: of(getattr(batch, f.name)) for f in fields(batch)})


def leaves_again(batch: DomainBatch) -> DomainBatch:
    """Return a batch whose taps, and those of its views, are leaves that take a gradient."""
    taps = {name: x.detach().clone().requires_grad_() for name, x in batch.taps.items()}
    views = tuple(leaves_again(view) for view in batch.views)
    return replace(batch, taps=taps, logits=taps["logits"], views=views)


def tensors_of(batch: DomainBatch) -> list[Tensor]:
    """Return each tensor of a batch once."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_batch(batch, keep)
    return found


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Return the gradient of each leaf, zeros for one that the total does not depend on."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(
        torch.autograd.grad(
            total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def trained(method: nn.Module) -> list[Tensor]:
    """Return the parameters of a method that are trained."""
    return [p for p in method.parameters() if p.requires_grad]


def same(found: Tensor, expected: Tensor, rtol: float = 1e-4) -> bool:
    """Return whether two tensors differ by rounding only, by the size of the larger entries."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=rtol, atol=rtol * scale + 1e-7)


def number(value: Tensor) -> float:
    """Return a scalar as a plain number."""
    return float(value.detach())
