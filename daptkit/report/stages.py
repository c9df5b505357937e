"""How far the domains are apart at each stage of a network, from the image to the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from daptkit.errors import UsageError
from daptkit.model import AdaptNet
from daptkit.model.network import evaluating
from daptkit.report.embedding import sample_rows
from daptkit.report.stage_cache import Distances, kept_distances
from daptkit.shift import mmd2, proxy_a_distance
from daptkit.train.adaptation import Trained
from daptkit.train.deliver import Delivered
from daptkit.train.device import full_precision
from daptkit.train.domains import Domain, Rows
from daptkit.train.inference import as_numpy, forward_rows
from daptkit.train.sight import Sight, Sights, plain_sight

Floats = npt.NDArray[np.float64]

MAX_STAGES = 5
MAX_PER_DOMAIN = 256
_CHUNK = 32
_CHUNK_VALUES = 2**25
"""Images whose full maps are in memory at once, and values of those maps."""
_BLANK = 2
"""Images of the pass that tries the layers; a batch of 1 could hide its axis."""
_PREFIX = "backbone."


@dataclass(frozen=True)
class Stage:
    """A layer to tap.

    Args:
        label: name for people.
        tap: what :class:`daptkit.model.AdaptNet` calls it.
        channels: number of channels where the network tells it.
    """

    label: str
    tap: str
    channels: int | None = None


def stage_layers(net: AdaptNet) -> list[Stage]:
    """Return at most five stages of the backbone in order, then features and logits.

    Backbone stages are those that timm lists for the network, else its top-level children that
    have parameters. A stage whose output is not one tensor with a row per image is left out.
    """
    features = "features (bottleneck)" if net.config.bottleneck else "features"
    return [*backbone_stages(net), Stage(features, "features"), Stage("logits", "logits")]


def backbone_stages(net: AdaptNet) -> list[Stage]:
    """Return at most five stages of the backbone in order; none where nothing can be tapped."""
    return _spread(_usable(net, _listed(net.backbone) or _children(net.backbone)))


def stage_divergences(trained: Trained) -> dict[str, Any]:
    """Return proxy A-distance and MMD^2 of source and target at each stage of each model.

    Maps (N, C, H, W) and tokens (N, T, C) are reduced to mean and standard deviation of each
    channel over places. At most 256 images a domain, drawn by the run's seed; the source's are
    those that the run's divergences are measured on.

    Returns:
        ``{"shown", "layers", "proxy_a_distance", "mmd2", "note"}``, or ``{"layers": [], "note"}``
        where nothing could be tapped.
    """
    seed, data = trained.config.seed, trained.prepared.data
    rows = {
        "source": sample_rows(trained.twin.passes.source_rows, MAX_PER_DOMAIN, seed),
        "target": sample_rows(data.target_rows, MAX_PER_DOMAIN, seed),
    }
    stages = stage_layers(trained.twin.net)
    if not any(stage.tap.startswith(_PREFIX) for stage in stages):
        return {"layers": [], "note": "No stage of this network returns one tensor of features."}
    models = {"source-only": trained.twin}
    if trained.adapted is not None:
        models["adapted"] = trained.adapted
    distances = _by_model(models, stages, rows, trained)
    return {
        "shown": {domain: len(chosen) for domain, chosen in rows.items()},
        "layers": [stage.label for stage in stages],
        "proxy_a_distance": {name: [a for a, _ in found] for name, found in distances.items()},
        "mmd2": {name: [b for _, b in found] for name, found in distances.items()},
        "note": _note(trained),
    }


def _note(trained: Trained) -> str | None:
    if trained.config.finetune != "frozen" or trained.adapted is None:
        return None
    if sees_changed(trained, trained.adapted):
        return (
            "The backbone is frozen: its stages differ between the models only because a method"
            " changes the images of the adapted one."
        )
    return "The backbone is frozen, so its stages are the same in both models."


def sees_changed(trained: Trained, model: Delivered) -> bool:
    """Whether a method changes the images that a model sees."""
    own, raw = model.fit.passes.data, trained.twin.fit.passes.data
    return own.source.images is not raw.source.images or own.target.images is not raw.target.images


def _listed(backbone: nn.Module) -> list[Stage]:
    """Return the stages that timm lists."""
    listed: Any = getattr(backbone, "feature_info", None)
    modules = dict(backbone.named_modules())
    stages = []
    for entry in listed if isinstance(listed, list) else []:
        path = entry.get("module") if isinstance(entry, dict) else None
        if isinstance(path, str) and path in modules:
            stages.append(Stage(path, _PREFIX + path, entry.get("num_chs")))
    return stages


def _children(backbone: nn.Module) -> list[Stage]:
    """Return the top-level children with parameters, inside a lone wrapper where there is one."""
    path, module = "", backbone
    while True:
        children = [(n, c) for n, c in module.named_children() if any(True for _ in c.parameters())]
        if len(children) != 1 or not any(True for _ in children[0][1].children()):
            break
        path, module = f"{path}{children[0][0]}.", children[0][1]
    return [Stage(path + name, _PREFIX + path + name) for name, _ in children]


def _spread(stages: Sequence[Stage]) -> list[Stage]:
    """Return at most five of the stages, evenly apart, the last among them."""
    if len(stages) <= MAX_STAGES:
        return list(stages)
    return [stages[i] for i in np.linspace(0, len(stages) - 1, MAX_STAGES).round().astype(int)]


@torch.no_grad()
def _usable(net: AdaptNet, stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages whose output is one tensor with a row per image."""
    size = net.config.img_size
    blank = torch.zeros(_BLANK, net.config.in_chans, size, size, device=net.mean.device)

    def taps_of(asked: Sequence[Stage]) -> dict[str, Tensor]:
        try:
            with evaluating(net):
                taps: dict[str, Tensor] = net(blank, tuple(stage.tap for stage in asked))[1]
        except UsageError:
            return {}
        return taps

    # One pass for all of them; where one of them cannot be tapped, each on its own.
    found = taps_of(stages) or {k: v for s in stages for k, v in taps_of([s]).items()}
    good = {name for name, t in found.items() if 2 <= t.ndim <= 4 and len(t) == _BLANK}
    return [stage for stage in stages if stage.tap in good]


Summaries = dict[str, dict[str, Floats]]
"""Channel statistics (N, F) by tap and domain."""


def _by_model(
    models: Mapping[str, Delivered],
    stages: Sequence[Stage],
    rows: Mapping[str, Rows],
    trained: Trained,
) -> dict[str, Distances]:
    """Return the distances at every stage, in order, of each model."""
    inside = [stage for stage in stages if stage.tap.startswith(_PREFIX)]

    device = trained.twin.fit.passes.precision.device

    def of_backbone(model: Delivered) -> Distances:
        data = model.fit.passes.data
        images = {
            "source": replace(data.source, trunk=None),
            "target": replace(data.target, trunk=None),
        }
        sights = model.fit.passes.sight
        found = backbone_summaries(model.net, inside, images, rows, device, sights)
        return _distances(found, rows, trained)

    def kept(model: Delivered) -> Distances:
        taps = [stage.tap for stage in inside]
        return kept_distances(trained, model, taps, rows, lambda: of_backbone(model))

    if trained.prepared.data.from_trunk:
        shared = kept(trained.twin)
        found = {n: kept(m) if sees_changed(trained, m) else shared for n, m in models.items()}
    else:
        found = {name: of_backbone(model) for name, model in models.items()}
    return {
        name: [*found[name], *_distances(_of_passes(model, rows), rows, trained)]
        for name, model in models.items()
    }


def _of_passes(model: Delivered, rows: Mapping[str, Rows]) -> Summaries:
    """Return features and logits of the rows, which the run has passed already."""
    passes = model.passes
    source, target = np.searchsorted(passes.source_rows, rows["source"]), rows["target"]
    return {
        "features": {
            "source": passes.source_features[source],
            "target": passes.target_features[target],
        },
        "logits": {
            "source": passes.source_logits[source],
            "target": passes.target_logits[target],
        },
    }


def backbone_summaries(
    net: AdaptNet,
    stages: Sequence[Stage],
    domains: Mapping[str, Domain],
    rows: Mapping[str, Rows],
    device: torch.device,
    sights: Sights = plain_sight,
) -> Summaries:
    """Return channel statistics of images of both domains at stages of the backbone.

    Args:
        net: on ``device``.
        stages: of :func:`backbone_stages`.
        domains: images, without cached trunk features, by domain.
        rows: rows of each domain.
        device: where the network runs.
        sights: how the network sees each domain.
    """
    found = {
        name: _of_rows(net, stages, domains[name], rows[name], device, sights(name))
        for name in domains
    }
    return {stage.tap: {name: found[name][stage.tap] for name in domains} for stage in stages}


def _of_rows(
    net: AdaptNet,
    stages: Sequence[Stage],
    domain: Domain,
    rows: Rows,
    device: torch.device,
    sight: Sight,
) -> dict[str, Floats]:
    precision = full_precision(device)
    layers = tuple(stage.tap for stage in stages)
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    step = min(_CHUNK, domain.chunk, max(1, _CHUNK_VALUES // sum(net.dims(layers).values())))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        _, taps = forward_rows(net, domain, chunk, layers=layers, precision=precision, sight=sight)
        for stage in stages:
            parts[stage.tap].append(channel_statistics(taps[stage.tap], stage.channels))
    return {layer: as_numpy(torch.cat(found)) for layer, found in parts.items()}


def channel_statistics(tap: Tensor, channels: int | None = None) -> Tensor:
    """Return mean and standard deviation of each channel over places, (N, 2 C).

    Args:
        tap: (N, C, H, W), (N, T, C), or (N, C), which is returned as it is.
        channels: C where known: tells (N, H, W, C) from (N, C, H, W), and (N, C, T) from (N, T, C).
    """
    if tap.ndim == 2:
        return tap
    last = tap.ndim == 3
    if channels in (tap.shape[1], tap.shape[-1]) and tap.shape[1] != tap.shape[-1]:
        last = tap.shape[-1] == channels
    places = tap.flatten(1, -2) if last else tap.flatten(2).transpose(1, 2)  # (N, P, C)
    deviation = places.var(dim=1, correction=0).sqrt()
    return torch.cat([places.mean(dim=1), deviation], dim=1)


def _distances(summaries: Summaries, rows: Mapping[str, Rows], trained: Trained) -> Distances:
    data = trained.prepared.data
    groups = {
        "source": data.source.groups[rows["source"]],
        "target": data.target.groups[rows["target"]],
    }
    return stage_distances(summaries, groups, trained.config.seed)


def stage_distances(summaries: Summaries, groups: Mapping[str, Rows], seed: int) -> Distances:
    """Return proxy A-distance and MMD^2 of each stage; ``None`` for what is not finite.

    Args:
        summaries: statistics (N, F) by stage and domain.
        groups: (N,) patients by domain.
        seed: of subsamples and folds.
    """
    measured = partial(
        proxy_a_distance,
        source_groups=groups["source"],
        target_groups=groups["target"],
        seed=seed,
    )
    found: Distances = []
    for domains in summaries.values():
        pair = domains["source"], domains["target"]
        if all(np.isfinite(values).all() for values in pair):
            found.append((measured(*pair), mmd2(*pair, seed=seed)))
        else:
            found.append((None, None))
    return found
