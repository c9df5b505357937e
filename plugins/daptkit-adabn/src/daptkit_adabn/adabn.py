"""Adaptive normalisation, AdaBN (arXiv:1603.04779), and its like for nets without BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from daptkit.method import FitContext, Method, TaskInfo
from daptkit.nn import weighted_mean
from daptkit_adabn.plugin import AdaBNOptions
from daptkit_adabn.statistics import CONSTANT, Moments, change, deviations, matched

_LAYERS, _FIXED, _BATCHES = "layers", "fixed", "batches"
_MODES = (_LAYERS, _FIXED, _BATCHES)


class AdaBN(Method):
    """Normalise each domain by its own statistics.

    Where the backbone has BatchNorm and is trained, its layers normalise the target by statistics
    that give their outputs the moments that they have for the source; weight, bias and activation
    stay. Elsewhere, of a frozen trunk or a net without BatchNorm, the pooled features are
    standardised by mean and deviation of their domain, and brought to the source's by default.

    Source images count by the class weights in force: what is matched is a source with the
    target's class frequencies, so that these alone move no statistic.

    Args:
        options: see :class:`daptkit_adabn.plugin.AdaBNOptions`.
        task: sizes.

    Reference: Li, Wang, Shi, Liu, Hou 2016, arXiv:1603.04779.
    """

    layers = ("features", "trunk")
    options: AdaBNOptions
    mean: Tensor
    deviation: Tensor
    mode: Tensor

    def __init__(self, options: AdaBNOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        width = task.dims["trunk"]
        self.register_buffer("mean", torch.zeros(2, width))  # source, target
        self.register_buffer("deviation", torch.ones(2, width))
        self.register_buffer("mode", torch.tensor(0))
        # Not read from the buffer at every step, which a GPU would have to wait for.
        self._mode: str | None = None
        self._source_batch: Moments | None = None
        self._report: dict[str, Any] = {}

    def normalises_apart(self) -> bool:
        """Return option ``train``."""
        return self.options.train

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the target's statistics of every layer, coherent with one another."""
        layers, source = ctx.norm_layers(), ctx.input_moments("source")

        def choose(name: str, mean: Tensor, var: Tensor) -> Moments:
            return matched(layers[name], source[name], (mean, var), self.options.strength)

        found = ctx.chained_statistics("target", choose, limit=self.options.images)
        moved = [change(layers[name], statistics) for name, statistics in found.items()]
        self._report = {
            "statistics": "norm",
            "layers": len(found),
            "mean_change": sum(moved) / len(moved),
        }
        return found

    def fit_features(self, ctx: FitContext) -> None:
        """Take mean and deviation of the pooled features of each domain, if layers have none."""
        if ctx.norm_layers():
            self._set_mode(_LAYERS)
            return
        self._set_mode(_FIXED if ctx.finetune == "frozen" else _BATCHES)
        moments = [ctx.input_moments(d, ("trunk",))["trunk"] for d in ("source", "target")]
        means = torch.stack([mean for mean, _ in moments])
        scales = torch.stack(deviations(moments[0][1], moments[1][1]))
        self.mean.copy_(means)
        self.deviation.copy_(scales)
        gap = (means[0] - means[1]).abs() / scales[0]
        self._report = {
            "statistics": "features",
            "mean_gap": float(gap.mean()),
            "mean_ratio": float((scales[1] / scales[0]).mean()),
        }

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        """Return features (N, D') brought to the common scale by what was fitted."""
        if self._known_mode() == _LAYERS:
            return features
        source, target = zip(self.mean, self.deviation, strict=True)
        return self._brought(features, domain, source, target)

    def align_batch(
        self, features: Tensor, domain: str, weights: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return features of a batch; of a trunk that is trained, by the batch's own moments.

        What was fitted is of the epoch before. The moments are those of all processes' rows, and
        gradients pass through them, as they do in BatchNorm.
        """
        if self._known_mode() != _BATCHES:
            return self.align_features(features, domain)
        with torch.autocast(features.device.type, enabled=False):
            own = _batch_moments(gather(features.float()), gather(weights))
        if domain == "source":
            # The step passes the source first, and the target is brought to the same scale.
            self._source_batch = own
        source = own if self._source_batch is None else self._source_batch
        return self._brought(features, domain, source, own)

    def report(self) -> dict[str, Any]:
        """Return which statistics are each domain's own, and how far they were apart."""
        return dict(self._report)

    def _brought(self, features: Tensor, domain: str, source: Moments, target: Moments) -> Tensor:
        keeps = self.options.scale == "source"
        if domain == "source" and keeps:
            return features
        mean, deviation = source
        if domain == "target":
            mean, deviation = (
                torch.lerp(a, b, self.options.strength) for a, b in zip(source, target, strict=True)
            )
        unit = (features.float() - mean) / deviation
        brought = unit * source[1] + source[0] if keeps else unit
        return brought.to(features.dtype)

    def _set_mode(self, mode: str) -> None:
        self._mode = mode
        self.mode.fill_(_MODES.index(mode))

    def _known_mode(self) -> str:
        if self._mode is None:
            self._mode = _MODES[int(self.mode)]
        return self._mode


def _batch_moments(features: Tensor, weights: Tensor) -> Moments:
    """Return weighted mean and deviation (D',) of (N, D').

    As in BatchNorm a small share of the mean variance is added, so that a channel that hardly
    varies in a batch is not blown up; 1 is the deviation where nothing varies.
    """
    mean = weighted_mean(features, weights)
    var = weighted_mean((features - mean).square(), weights)
    floor = CONSTANT * var.detach().mean()
    return mean, (var + torch.where(floor > 0, floor, 1.0)).sqrt()


__all__ = ["AdaBN"]
