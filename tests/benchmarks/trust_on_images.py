"""How often an estimate of the target prior is trusted on features of real images.

Pure label shift is made by cutting one site in two and drawing the second half by class to a random
prior; feature shift by taking the target from another site, or from the same one altered. Run
``python tests/benchmarks/trust_on_images.py DATA WEIGHTS``, with the folder of ``digits`` and
``pneumonia_cxr`` and a MobileNetV2 for timm; the table is in the README of daptkit-bbse.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter, zoom
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from daptkit.data import ImageSet, fit_conversion, read_table
from daptkit.model import (
    FeatureCache,
    build_model,
    default_cache_dir,
    load_backbone_weights,
    resolve_model_config,
)
from daptkit.shift import estimate_prior

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Site:
    """Features (N, D), labels (N,) and patients (N,) of one site."""

    x: Floats
    y: Ints
    groups: Ints

    def rows(self, index: npt.NDArray[np.int64]) -> Site:
        return Site(self.x[index], self.y[index], self.groups[index])

    def halves(self, rng: np.random.Generator) -> tuple[Site, Site]:
        """Return two sites that share no patient."""
        names = rng.permutation(np.unique(self.groups))
        first = np.isin(self.groups, names[: len(names) // 2])
        return self.rows(np.flatnonzero(first)), self.rows(np.flatnonzero(~first))

    def with_prior(self, prior: Floats, n: int, rng: np.random.Generator) -> Site:
        """Draw up to n images without repetition, in the proportions of ``prior``."""
        counts = np.bincount(self.y, minlength=len(prior))
        n = int(min(n, (counts / np.maximum(prior, 1e-9)).min()))
        wanted = np.maximum(np.round(prior * n).astype(int), 1)
        drawn = [
            rng.choice(np.flatnonzero(self.y == c), min(wanted[c], counts[c]), replace=False)
            for c in range(len(prior))
        ]
        return self.rows(np.concatenate(drawn))


Pair = Callable[[np.random.Generator], tuple[Site, Site]]


def digits(path: Path, alter: Callable[[Floats], Floats] = lambda images: images) -> Site:
    """Read images (N, H, W) in [0, 1], brought to 16 x 16, as rows of pixels."""
    with np.load(path) as archive:
        images = archive["train_images"][:8000].astype(np.float64) / 255
        labels = archive["train_labels"][:8000].reshape(-1).astype(np.int64)
    if images.shape[1] != 16:
        images = zoom(images, (1, 16 / images.shape[1], 16 / images.shape[2]), order=1)
    return Site(alter(images).reshape(len(images), -1), labels, np.arange(len(images)))


def blurred_and_grey(images: Floats) -> Floats:
    """A softer, paler scanner with grain."""
    grain = np.random.default_rng(0).normal(0, 0.1, images.shape)
    return 0.2 + 0.6 * gaussian_filter(images, (0, 0.7, 0.7)) + grain


def chests(path: Path, weights: Path) -> Site:
    """Pooled MobileNetV2 features of a manifest's images at 160 pixels."""
    table = read_table(path, domain="source", labelled=True)
    config = resolve_model_config(
        "mobilenetv2_100", ["pad_type=same"], 160, 3, (0.5,), (0.5,), 2, 0, 0.0
    )
    net = build_model(config)
    load_backbone_weights(net, weights)
    conversion = fit_conversion([table], img_size=160, in_chans=3)
    images = ImageSet(table, conversion)
    trunk = FeatureCache(default_cache_dir()).trunk_features(
        net,
        images,
        key_parts={"data": table.fingerprint(), "conversion": conversion.to_json()},
        device="cpu",
        batch_size=64,
    )
    assert images.table.labels is not None
    y = np.unique(images.table.labels, return_inverse=True)[1].astype(np.int64)
    return Site(trunk.double().numpy(), y, images.table.groups())


@dataclass(frozen=True)
class Trial:
    """One estimate: trusted by classifier outputs alone, trusted with features, and its errors."""

    by_outputs: bool
    trusted: bool
    accuracy: float
    error: float
    counting: float


def trial(pair: Pair, n: int, strength: float, seed: int) -> Trial:
    """Train on half of the source, estimate from its other half and a target of random prior."""
    rng = np.random.default_rng(seed)
    source, pool = pair(rng)
    train, held_out = source.halves(rng)
    held_out = held_out.rows(rng.permutation(len(held_out.y))[:n])
    k = int(source.y.max()) + 1
    target = pool.with_prior(rng.dirichlet(np.ones(k)), n, rng)
    truth = np.bincount(target.y, minlength=k) / len(target.y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    model.fit(train.x, train.y)
    logits, target_logits = (
        np.maximum(model.predict_log_proba(site.x), -50.0) for site in (held_out, target)
    )
    found, blind = (
        estimate_prior(
            logits,
            held_out.y,
            target_logits,
            source_prior=np.bincount(train.y, minlength=k) / len(train.y),
            source_groups=held_out.groups,
            target_groups=target.groups,
            n_source=len(train.y),
            bootstraps=20,
            seed=seed,
            **features,
        )
        for features in ({"source_features": held_out.x, "target_features": target.x}, {})
    )
    counts = np.bincount(target_logits.argmax(1), minlength=k) / len(target.y)
    return Trial(
        by_outputs=blind.trusted,
        trusted=found.trusted,
        accuracy=float((logits.argmax(1) == held_out.y).mean()),
        error=float(np.abs(found.estimate - truth).sum()),
        counting=float(np.abs(counts - truth).sum()),
    )


def within(site: Site) -> Pair:
    return lambda rng: site.halves(rng)


def across(source: Site, target: Site) -> Pair:
    return lambda rng: (source, target)


def halves_altered(site: Site, altered: Site) -> Pair:
    """Halves of one site, the second one altered."""

    def make(rng: np.random.Generator) -> tuple[Site, Site]:
        order = rng.permutation(len(site.y))
        middle = len(order) // 2
        return site.rows(order[:middle]), altered.rows(order[middle:])

    return make


def report(name: str, pair: Pair, strength: float, sizes: Sequence[int], seeds: int) -> None:
    for n in sizes:
        trials = [trial(pair, n, strength, seed) for seed in range(seeds)]
        means = [np.mean([getattr(t, f) for t in trials]) for f in ("accuracy", "by_outputs")]
        trusted = np.mean([t.trusted for t in trials])
        errors = [np.median([getattr(t, f) for t in trials]) for f in ("error", "counting")]
        print(
            f"| {name} | {n} | {means[0]:.2f} | {trusted:.2f} | {means[1]:.2f} | "
            f"{errors[0]:.2f} | {errors[1]:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    cxr = options.data / "pneumonia_cxr"
    usps, mnist = (digits(options.data / "digits" / f"{name}.npz") for name in ("usps", "mnist"))
    pale = digits(options.data / "digits" / "usps.npz", blurred_and_grey)
    nih, guangzhou = (
        chests(cxr / f"{name}.csv", options.weights)
        for name in ("nih_adult", "guangzhou_pediatric")
    )
    print("| shift | n | held-out accuracy | trusted | by outputs | L1 | L1 of counting |")
    print("|---|---|---|---|---|---|---|")
    for name, pair, strength, sizes in (
        ("label: USPS, halves", within(usps), 0.01, (200, 500, 1500)),
        ("label: USPS, halves, weak classifier", within(usps), 1e-5, (200, 500, 1500)),
        ("label: NIH, halves", within(nih), 1e-3, (200,)),
        ("label: Guangzhou, halves", within(guangzhou), 1e-3, (200, 500)),
        ("label + pale: USPS, halves", halves_altered(usps, pale), 0.01, (200, 500, 1500)),
        ("label + site: USPS -> MNIST", across(usps, mnist), 0.01, (200, 500, 1500)),
        ("label + site: MNIST -> USPS", across(mnist, usps), 0.01, (200, 500, 1500)),
        ("label + site: NIH -> Guangzhou", across(nih, guangzhou), 1e-3, (200, 500)),
        ("label + site: Guangzhou -> NIH", across(guangzhou, nih), 1e-3, (200, 500)),
    ):
        report(name, pair, strength, sizes, options.seeds)


if __name__ == "__main__":
    main()
