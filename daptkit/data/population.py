"""Which images a simulated site has, and what it calls them: prior, redefinition, label noise.

Every image draws one number for each of these steps, from the seed and its row alone, and the
images with the lowest numbers are taken. So a larger share contains a smaller one, and a choice
does not depend on what else was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.data.labels import class_names, encode_labels
from daptkit.data.table import ImageTable, Indices, choose_split
from daptkit.errors import DataError, UsageError, did_you_mean

_PRIOR, _REDEFINE, _NOISE, _NOISE_CLASS = range(2, 6)
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Population:
    """The images of a simulated site and their labels.

    Args:
        classes: class names of the old site.
        candidates: (n,) rows of the split that was drawn from.
        prior: class to the share that was asked for; ``None`` where none was.
        rows: (m,) rows that the new site has, sorted.
        before: label of every row of the old site.
        redefined: those labels under the new site's definition of the classes.
        after: those with label noise, which the new site's records hold.
    """

    classes: tuple[str, ...]
    candidates: Indices
    prior: Mapping[str, float] | None
    rows: Indices
    before: Sequence[str]
    redefined: Sequence[str]
    after: Sequence[str]


def draw_population(
    table: ImageTable,
    *,
    split: str | None,
    prior: Mapping[str, float],
    redefinitions: Mapping[str, tuple[str, float]],
    label_noise: float,
    seed: int,
) -> Population:
    """Choose the images of a simulated site by their old labels, then relabel them.

    Args:
        table: labelled images of the old site.
        split: split to draw from, or ``"all"`` or ``None``.
        prior: class to share, see :func:`complete_prior`; empty to keep every image.
        redefinitions: see :func:`redefine`.
        label_noise: see :func:`add_label_noise`.
        seed: of all draws.

    Raises:
        UsageError: classes or shares that cannot be.
        DataError: unknown split, images without a label, fewer than two classes, or a prior for
            a class without images.
    """
    classes, candidates = class_names(table.labels), choose_split(table, split, "all")
    encode_labels(table.select(candidates), classes)  # a missing label is an error
    before = table.labels or ()
    rows, full = candidates, None
    if prior:
        full = complete_prior(prior, class_counts(before, candidates.tolist(), classes), classes)
        rows = sample_to_prior(before, candidates, full, seed)
    redefined = redefine(before, rows, redefinitions, classes, seed)
    return Population(
        classes=classes,
        candidates=candidates,
        prior=full,
        rows=rows,
        before=before,
        redefined=redefined,
        after=add_label_noise(redefined, rows, label_noise, classes, seed),
    )


def complete_prior(
    asked: Mapping[str, float], counts: Mapping[str, int], classes: Sequence[str]
) -> dict[str, float]:
    """Return a prior over all classes; those not named share the rest in their old proportions.

    Args:
        asked: class to share.
        counts: class to images there are.
        classes: all classes.

    Raises:
        UsageError: an unknown class, a share outside [0, 1], or shares that cannot sum to 1.
        DataError: a class that must have images has none.
    """
    for name, share in asked.items():
        _known(name, classes, "--prior")
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"--prior {name}={share:g} is not a share in [0, 1].")
    total = sum(asked.values())
    others = [name for name in classes if name not in asked]
    if total > 1.0 + _TOLERANCE or (not others and total < 1.0 - _TOLERANCE):
        missing = "" if others else ", and no other class takes the rest"
        raise UsageError(f"the shares of --prior sum to {total:g}, not 1{missing}.")
    rest, images = max(0.0, 1.0 - total), sum(counts.get(name, 0) for name in others)
    if rest > _TOLERANCE and not images:
        raise DataError(
            f"--prior leaves {rest:g} to the classes {', '.join(others)}, of which there are no"
            " images; name shares that sum to 1, or choose another split."
        )
    prior = {
        name: asked[name] if name in asked else rest * counts.get(name, 0) / max(1, images)
        for name in classes
    }
    empty = [name for name, share in prior.items() if share > 0.0 and not counts.get(name, 0)]
    if empty:
        raise DataError(f"--prior asks for the class '{empty[0]}', of which there are no images.")
    return prior


def sample_to_prior(
    labels: Sequence[str], rows: Indices, prior: Mapping[str, float], seed: int
) -> Indices:
    """Return the largest subsample whose classes have the shares of a prior, without replacement.

    N = floor(min over classes of n_c / q_c) images, of which class c has N q_c, rounded by largest
    remainders. Images are drawn, not patients: a patient may lose some images and keep others.

    Args:
        labels: class of every image of the site.
        rows: (n,) rows to draw from.
        prior: class to its share q_c; every class with a share has images among ``rows``.
        seed: of the draw.

    Returns:
        The rows that are kept, sorted.
    """
    of_class = {name: _members(labels, rows, name) for name in prior}
    limits = [len(of_class[name]) / share for name, share in prior.items() if share > 0.0]
    total = int(np.floor(min(limits) + _TOLERANCE))
    counts = _rounded({name: total * share for name, share in prior.items()}, total)
    drawn = _draws(len(labels), seed, _PRIOR)
    kept = [_lowest(of_class[name], drawn, count) for name, count in counts.items()]
    return np.sort(np.concatenate(kept))


def redefine(
    labels: Sequence[str],
    rows: Indices,
    redefined: Mapping[str, tuple[str, float]],
    classes: Sequence[str],
    seed: int,
) -> list[str]:
    """Return labels under another definition of the classes: concept shift.

    A random share of the images of class A, rounded, is labelled B. All classes change at once,
    by their old label.

    Args:
        labels: class of every image of the site.
        rows: (n,) rows that the new site has; others keep their label.
        redefined: A to (B, share).
        classes: all classes.
        seed: of the draw.

    Raises:
        UsageError: an unknown class, A and B the same, or a share outside [0, 1].
    """
    changed = list(labels)
    drawn = _draws(len(labels), seed, _REDEFINE)
    for old, (new, share) in redefined.items():
        for name in (old, new):
            _known(name, classes, "--redefine")
        if old == new or not 0.0 <= share <= 1.0:
            raise UsageError(
                f"--redefine {old}={new}:{share:g} needs two classes and a share in [0, 1]."
            )
        members = _members(labels, rows, old)
        for row in _lowest(members, drawn, round(share * len(members))):
            changed[row] = new
    return changed


def add_label_noise(
    labels: Sequence[str], rows: Indices, share: float, classes: Sequence[str], seed: int
) -> list[str]:
    """Return labels of which a share, rounded, is replaced by another class, each equally likely.

    Args:
        labels: class of every image of the site.
        rows: (n,) rows that the new site has; others keep their label.
        share: of ``rows``.
        classes: all classes, at least two.
        seed: of the draw.

    Raises:
        UsageError: a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"--label-noise {share:g} is not a share in [0, 1].")
    changed = list(labels)
    which = _draws(len(labels), seed, _NOISE_CLASS)
    for row in _lowest(rows, _draws(len(labels), seed, _NOISE), round(share * len(rows))):
        others = [name for name in classes if name != labels[row]]
        changed[row] = others[int(which[row] * len(others))]
    return changed


def class_counts(
    labels: Sequence[str], rows: Iterable[int], classes: Sequence[str]
) -> dict[str, int]:
    """Return the number of images of each class among ``rows``, in the order of ``classes``."""
    found = Counter(labels[row] for row in rows)
    return {name: found[name] for name in classes}


def _draws(n_images: int, seed: int, step: int) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for every image of the old site."""
    return np.random.default_rng((seed, step)).random(n_images)


def _members(labels: Sequence[str], rows: Indices, name: str) -> Indices:
    members: Indices = rows[np.array(labels)[rows] == name]
    return members


def _lowest(rows: Indices, drawn: npt.NDArray[np.float64], count: int) -> Indices:
    chosen: Indices = rows[np.argsort(drawn[rows], kind="stable")[:count]]
    return chosen


def _rounded(wanted: Mapping[str, float], total: int) -> dict[str, int]:
    """Round to whole numbers that sum to ``total``, by largest remainders."""
    counts = {name: int(np.floor(value + _TOLERANCE)) for name, value in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _known(name: str, classes: Sequence[str], option: str) -> None:
    if name not in classes:
        raise UsageError(
            f"{option}: there is no class {name!r} (have: {', '.join(classes)})."
            + did_you_mean(name, classes)
        )
