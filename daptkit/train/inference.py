"""Whole-split passes of a model, without augmentation and without gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from daptkit.data import to_float
from daptkit.method import NormLayer
from daptkit.model import AdaptNet
from daptkit.model.network import evaluating
from daptkit.model.norms import Statistics, norm_layers, normalised_by
from daptkit.train.device import Precision, full_precision
from daptkit.train.domains import Domain, Rows, TaskData
from daptkit.train.moments import Choose, Moments, chained_statistics, input_moments
from daptkit.train.sight import PLAIN, Sight, Sights, plain_sight
from daptkit.train.world import ALONE, World

Outputs = tuple[Tensor, dict[str, Tensor]]
"""Logits (N, K) and taps (N, ...) by layer."""


@torch.no_grad()
def forward_rows(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    *,
    layers: tuple[str, ...] = ("features",),
    precision: Precision,
    world: World = ALONE,
    sight: Sight = PLAIN,
) -> Outputs:
    """Run the model in eval mode over rows of a domain, in order.

    Several processes share the forwards, each of which holds the rows that it would hold in one
    process, so the outputs are the same to the last bit.

    Args:
        net: the model, on the device of ``precision``; the mode of each module is restored.
        domain: images or cached trunk features.
        rows: (N,) rows of the domain.
        layers: taps to return.
        precision: device and mixed precision.
        world: processes that share the work; each gets all of the outputs.
        sight: how the model sees images of this domain.

    Returns:
        Uncorrected logits (N, K) and taps (N, ...), float32 on the CPU.
    """
    if not len(rows):
        raise ValueError("no rows to run the model on")
    chunks = list(domain.chunks(rows))
    found: dict[str, list[Tensor]] = {}
    with evaluating(net), normalised_by(net, sight.statistics):
        for inputs in domain.inputs(iter(world.own(chunks))):
            moved = to_float(inputs.to(precision.device))
            with precision.autocast():
                logits, taps = net(
                    moved, layers, from_trunk=domain.trunk is not None, align=sight.align
                )
            # No tap has the name of a place that is no name.
            for name, value in {"": logits, **taps}.items():
                found.setdefault(name, []).append(value.float().cpu())
    own = {name: torch.cat(parts) for name, parts in found.items()}
    outputs = world.joined(own, [len(chunk) for chunk in chunks])
    return outputs.pop(""), outputs


class SplitPasses:
    """Whole-split passes of one state of a model, each run once however often it is asked for.

    Args:
        net: the model, which must not change while this lives.
        data: both domains.
        precision: device and mixed precision.
        delivered: whether the model is trained to the end. It is then passed in full precision,
            and the target as a whole, so that what is delivered is what ``daptkit predict``
            computes and nothing has to be passed again for it.
        asked: layers that earlier states of the model were asked for, by split. A pass
            returns them at once instead of being run again for each; it is kept up to date.
        world: processes that share each pass, and must all ask for it.
        sights: how the model sees each domain.
    """

    def __init__(
        self,
        net: AdaptNet,
        data: TaskData,
        precision: Precision,
        *,
        delivered: bool = False,
        asked: dict[str, tuple[str, ...]] | None = None,
        world: World = ALONE,
        sights: Sights = plain_sight,
    ) -> None:
        self.data = data
        self.precision = full_precision(precision.device) if delivered else precision
        self.delivered = delivered
        self._net = net
        self._world = world
        self._sights = sights
        self._known: dict[str, Outputs] = {}
        self._asked = {} if asked is None else asked

    def of(self, split: str, layers: tuple[str, ...] = ("features",)) -> Outputs:
        """Return logits and at least the taps ``layers`` of a split of :class:`TaskData`."""
        domain, rows = self.data.split(split)
        if split != "target" or not self.delivered:
            return self._run(split, domain, rows, layers)
        logits, taps = whole = self.whole_target(layers)
        if np.array_equal(rows, all_rows(domain)):
            return whole
        inside = torch.from_numpy(rows)
        return logits[inside], {name: tap[inside] for name, tap in taps.items()}

    def some(self, split: str, places: Rows, layers: tuple[str, ...] = ("features",)) -> Outputs:
        """Return logits and taps of some images of a split, from its whole pass where that is due.

        Args:
            split: of :class:`TaskData`.
            places: (N,) numbers of the images within the split, from 0, sorted.
            layers: taps to return.
        """
        domain, rows = self.data.split(split)
        due = split in self._known or (split == "target" and self.delivered)
        if not due and len(places) < len(rows):
            return self._run(f"some of {split}", domain, rows[places], layers)
        logits, taps = self.of(split, layers)
        if len(places) == len(rows):
            return logits, taps
        inside = torch.from_numpy(places)
        return logits[inside], {name: tap[inside] for name, tap in taps.items()}

    def whole_target(self, layers: tuple[str, ...] = ("features",)) -> Outputs:
        """Return logits and taps of every target row, those not adapted to included.

        Raises:
            ValueError: the model is in training.
        """
        if not self.delivered:
            raise ValueError("a model in training is passed over the rows adapted to alone")
        return self._run("target", self.data.target, all_rows(self.data.target), layers)

    def input_moments(
        self, domain: Domain, rows: Rows, layers: tuple[str, ...], weights: Tensor | None
    ) -> Moments:
        """Return :func:`daptkit.train.moments.input_moments`; they are not kept."""
        return input_moments(
            self._net,
            domain,
            rows,
            layers=layers,
            weights=weights,
            precision=self.precision,
            world=self._world,
        )

    def chained_statistics(
        self, domain: Domain, rows: Rows, choose: Choose, weights: Tensor | None
    ) -> Statistics:
        """Return :func:`daptkit.train.moments.chained_statistics`; nothing on cached features."""
        if self.data.from_trunk:
            return {}
        return chained_statistics(
            self._net,
            domain,
            rows,
            choose=choose,
            weights=weights,
            precision=self.precision,
            world=self._world,
        )

    def sight(self, domain: str) -> Sight:
        """Return how the model sees ``"source"`` or ``"target"``; every process must ask."""
        return self._sights(domain)

    def norm_layers(self) -> dict[str, NormLayer]:
        """Return the statistics of the layers that a pass runs; see :class:`FitContext`."""
        return {} if self.data.from_trunk else norm_layers(self._net)

    def _run(self, name: str, domain: Domain, rows: Rows, layers: tuple[str, ...]) -> Outputs:
        # A frozen run has the trunk's features already.
        given = {} if domain.trunk is None else {"trunk": domain.trunk}
        needed = [layer for layer in layers if layer not in given]
        known = self._known.get(name)
        if known is None or not set(needed) <= known[1].keys():
            wanted = tuple(dict.fromkeys((*self._asked.get(name, ()), *needed)))
            known = forward_rows(
                self._net,
                domain,
                rows,
                layers=wanted,
                precision=self.precision,
                world=self._world,
                sight=self.sight("target" if name == "target" else "source"),
            )
            self._asked[name], self._known[name] = wanted, known
        if len(needed) == len(layers):
            return known
        inside = torch.from_numpy(rows)
        added = {layer: given[layer][inside] for layer in layers if layer in given}
        return known[0], {**known[1], **added}


class TrainingPasses:
    """Whole-split passes of a model that is being trained, shared until it is trained further.

    Args:
        net: the model.
        data: both domains.
        precision: device and mixed precision.
        world: processes that share each pass.
        asked: layers that will be asked for, by split.
        sights: how the model sees each domain, whatever its state.
    """

    def __init__(
        self,
        net: AdaptNet,
        data: TaskData,
        precision: Precision,
        world: World = ALONE,
        asked: dict[str, tuple[str, ...]] | None = None,
        sights: Sights = plain_sight,
    ) -> None:
        self._net, self._data, self._precision, self._world = net, data, precision, world
        self._sights = sights
        self._asked = {} if asked is None else dict(asked)
        self._now: SplitPasses | None = None

    def now(self, *, delivered: bool) -> SplitPasses:
        """Return the passes of the model as it is; see :class:`SplitPasses` for ``delivered``."""
        if self._now is None or self._now.delivered != delivered:
            self._now = SplitPasses(
                self._net,
                self._data,
                self._precision,
                delivered=delivered,
                asked=self._asked,
                world=self._world,
                sights=self._sights,
            )
        return self._now

    def forget(self) -> None:
        """Drop what is known, since the model is about to change."""
        self._now = None


def as_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a tensor as float64, the precision of everything statistical."""
    return tensor.detach().cpu().double().numpy()


def all_rows(domain: Domain) -> Rows:
    """Return every row of a domain, in order."""
    return np.arange(len(domain), dtype=np.int64)
