"""What speaks for and against an adapted model, each check by itself; the verdict weighs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daptkit.assess.accuracy.estimates import BALANCED, Draws
from daptkit.assess.accuracy.notes import FAILS, HOLDS, INDICATIVE, reliability
from daptkit.assess.accuracy.sample import Sample
from daptkit.assess.identity import MIN_BREADTH, breadth, swapped_classes, unexplained_collapse
from daptkit.assess.intervals import Estimate, percentile_interval
from daptkit.assess.paired import lost_balanced_accuracy
from daptkit.shift.arrays import FloatArray

FAMILIES = {
    "atc": "confidence",
    "atc_entropy": "confidence",
    "doc": "confidence",
    "prior_weighted_recall": "recall",
    "gde": "agreement",
}
"""Estimators whose differences are evidence; those of one family err together."""
CONFIDENCE = tuple(name for name, family in FAMILIES.items() if family == "confidence")
_ONE_CLASS = 0.9
"""Accuracy by chance from which a model is said to know one class only."""


@dataclass(frozen=True, kw_only=True)
class VerdictLimits:
    """Limits of the verdict.

    Args:
        min_kappa: chance-corrected agreement of independent heads on the target below which the
            source-only model is near chance.
        max_feature_gap: distance of the domains' features, in units of that between classes, from
            which nothing that the source taught need hold on the target.
        max_source_loss: balanced accuracy at the source that adapting may lose; below the whole
            interval it counts as harm.
        max_beyond_prior: L1 distance of the implied prior from the interval of a trusted estimate.
        min_stability: chance-corrected agreement of alternative adapted models below which the
            assignment of clusters to classes is luck.
    """

    min_kappa: float = 0.2
    max_feature_gap: float = 1.0
    max_source_loss: float = 0.1
    max_beyond_prior: float = 0.3
    min_stability: float = 0.4


def paired_differences(before: Draws, after: Draws, changed: float) -> dict[str, Estimate]:
    """Return each estimator's difference after - before with its paired interval.

    Both models were scored on the same resamples, so what makes a resample hard for both cancels.
    Values and replicates are cut to [-changed, changed]: where two models give one class, one is
    right as often as the other, so accuracies cannot differ by more than the share of images they
    differ on. Over-confidence alone then makes no difference.

    Args:
        before: of the one model.
        after: of the other, drawn with the same seed.
        changed: share of target images on which their classes differ, in [0, 1].
    """
    made = {}
    for name in before.values:
        if name.startswith(BALANCED) or name not in after.values:
            continue
        draws = after.replicates[name] - before.replicates[name]
        value = after.values[name] - before.values[name]
        made[name] = percentile_interval(
            float(np.clip(value, -changed, changed)), np.clip(draws, -changed, changed)
        )
    return made


@dataclass(frozen=True)
class Counted:
    """Differences taken as evidence.

    Args:
        names: estimators that were asked.
        up: those that say the adapted model is better, empty where that is not enough.
        down: those that say it is worse, likewise.
    """

    names: tuple[str, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]


def count_differences(
    differences: dict[str, Estimate], kind: str | None, raises_confidence: bool
) -> Counted:
    """Return what the differences say as far as the diagnosis lets them.

    A difference is up (down) if its whole interval is above (below) 0. One is enough if the
    diagnosis says that its assumption holds, or, for the agreement of heads, that it is indicative.
    Otherwise estimators of two families (confidence, recall, agreement) must say the same: where a
    simulated scanner shift was undone, the difference of confidences was down, with its whole
    interval, in a quarter of the runs (``tests/benchmarks/test_bench_accuracy.py``). Confidence is
    not asked about methods that train it, and no estimator whose assumption fails.

    Args:
        differences: of :func:`paired_differences`.
        kind: diagnosed kind of shift, or ``None``.
        raises_confidence: the method's loss raises confidence on the target.

    Raises:
        UsageError: unknown kind.
    """
    level = {name: reliability(name, kind)[0] for name in FAMILIES}
    asked = [
        name
        for name in FAMILIES
        if name in differences
        and level[name] != FAILS
        and not (raises_confidence and name in CONFIDENCE)
    ]
    alone = {n for n in asked if level[n] == HOLDS}
    alone |= {n for n in asked if level[n] == INDICATIVE and n not in CONFIDENCE}
    up = tuple(n for n in asked if (differences[n]["low"] or 0.0) > 0.0)
    down = tuple(n for n in asked if (differences[n]["high"] or 0.0) < 0.0)

    def enough(side: tuple[str, ...]) -> tuple[str, ...]:
        return side if alone & set(side) or len({FAMILIES[n] for n in side}) > 1 else ()

    return Counted(tuple(asked), enough(up), enough(down))


def source_loss(twin: Sample, adapted: Sample, n_bootstrap: int, seed: int) -> Estimate:
    """Return the balanced accuracy lost on held-out source images, with a paired interval."""
    found = lost_balanced_accuracy(
        twin.labels,
        twin.source_posterior.argmax(axis=1).astype(np.int64),
        adapted.source_posterior.argmax(axis=1).astype(np.int64),
        groups=twin.source_groups,
        patients_known=True,  # groups are one per image where patients are not known
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    return {end: found[end] for end in ("value", "low", "high")}


def harm(
    twin: Sample,
    adapted: Sample,
    loss: Estimate,
    prior_high: FloatArray | None,
    limit: VerdictLimits,
    names: tuple[str, ...],
) -> list[str]:
    """Return harm that shows without knowing what classes mean on the target."""
    k = twin.num_classes
    found = []
    top = unexplained_collapse(adapted.target_predicted, k, prior_high)
    if top is not None and unexplained_collapse(twin.target_predicted, k, prior_high) != top:
        found.append(
            f"the adapted model calls nearly every target image {names[top]}, which the "
            "source-only model does not"
        )
    worst = loss["low"] if loss["low"] is not None else loss["value"]
    if worst is not None and worst > limit.max_source_loss:
        found.append(
            f"adapting lost {loss['value'] or 0.0:.2f} of balanced accuracy on held-out source "
            "images"
        )
    return found


def unknowable(
    twin: Sample,
    draws: Draws,
    agreed: float | None,
    feature_gap: float | None,
    prior_known: bool,
    limit: VerdictLimits,
) -> list[str]:
    """Return why the twin may be near chance on the target, so that names cannot be checked."""
    found = []
    if agreed is not None and agreed < limit.min_kappa:
        found.append(
            "independently trained source-only models hardly agree on the target (chance-corrected "
            f"agreement {agreed:.2f})"
        )
    chance = 1.0 / twin.num_classes if prior_known else _chance(twin)
    reached = [n for n in CONFIDENCE if _low(draws, n) <= chance]
    if len(reached) == len(CONFIDENCE) and not prior_known and chance > _ONE_CLASS:
        found.append(
            "the source-only model calls nearly every image of the target one class, which no "
            "estimate can tell from guessing"
        )
    elif len(reached) == len(CONFIDENCE):
        found.append(
            "every estimate of the source-only model's accuracy on the target reaches down to "
            f"chance ({chance:.2f})"
        )
    if feature_gap is not None and np.isfinite(feature_gap) and feature_gap > limit.max_feature_gap:
        found.append(
            f"the sites differ {feature_gap:.1f} times as much as the classes do, so what was "
            "learnt at the source need not hold"
        )
    if found:
        found.append("clusters may be right and their names wrong: label a small audit set")
    return found


def _chance(twin: Sample) -> float:
    """Return the accuracy that the twin's predicted frequencies reach by chance, at least 1/K.

    A twin that calls nearly everything one class is right about that, or blind: only a trusted
    estimate of the target's prior can tell.
    """
    share = np.bincount(twin.target_predicted, minlength=twin.num_classes)
    share = share / share.sum()
    return max(float(share @ share), 1.0 / twin.num_classes)


def _low(draws: Draws, name: str) -> float:
    replicates = draws.replicates[name]
    low = percentile_interval(draws.values[name], replicates)["low"]
    return draws.values[name] if low is None else low


def renamed(twin: Sample, adapted: Sample, names: tuple[str, ...]) -> list[str]:
    """Return one sentence for each cycle of classes whose names adapting exchanged."""
    cycles = swapped_classes(twin.target_predicted, adapted.target_predicted, twin.num_classes)
    return [
        "the adapted model exchanges the names of classes on the target: "
        + ", ".join(names[i] for i in cycle)
        for cycle in cycles
    ]


def upheaval(before: Draws, changed: float, names: tuple[str, ...]) -> list[str]:
    """Return why to keep the source-only model though nothing proves harm; empty if nothing does.

    Of the images whose class changes, the source-only model can have had no more wrong than it has
    wrong at all: with accuracy a, a share c of changed classes breaks c - (1 - a) right answers at
    least. a is the lowest of the estimates by confidence and recall, as over-confidence is what
    they err by most. That is no proof: where a shift makes the source-only model wrong and sure,
    it is wrong more often than any of them says, and a model that undoes the shift changes more.

    Args:
        before: estimates of the source-only model.
        changed: share of target images on which the models' classes differ, c.
        names: estimators that may be asked.
    """
    asked = [n for n in names if FAMILIES[n] != "agreement" and n in before.values]
    if not asked:
        return []
    accuracy = min(before.values[n] for n in asked)
    if changed <= 1.0 - accuracy:
        return []
    return [
        f"{changed:.0%} of the target images change class, more than the {1.0 - accuracy:.0%} that "
        "the source-only model has wrong by the lowest estimate: if so, right answers were "
        "lost, and nothing shows that more were won"
    ]


def doubts(
    twin: Sample,
    adapted: Sample,
    stability: float | None,
    outside: float | None,
    limit: VerdictLimits,
) -> list[str]:
    """Return what keeps a rise of the estimates from being taken as help."""
    found = []
    before, after = (breadth(s.target_predicted, s.num_classes) for s in (twin, adapted))
    if outside is None and after < MIN_BREADTH * before:
        found.append("the adapted model spreads the target over far fewer classes")
    if stability is not None and stability < limit.min_stability:
        found.append(
            "adapted models that differ in nothing but chance give different classes "
            f"(chance-corrected agreement {stability:.2f})"
        )
    if outside is not None and outside > limit.max_beyond_prior:
        found.append(
            "the adapted model's class frequencies differ from the estimated ones "
            f"(L1 {outside:.2f})"
        )
    return found


def difference_text(names: tuple[str, ...], differences: dict[str, Estimate]) -> str:
    """Say how much the first of the estimates moved, and which agree."""
    first = differences[names[0]]
    value, low, high = (first[end] or 0.0 for end in ("value", "low", "high"))
    word = "rises" if value > 0 else "falls"
    return (
        f"estimated accuracy on the target {word} by {abs(value):.2f} "
        f"({low:+.2f} to {high:+.2f}) by " + ", ".join(names)
    )


def unasked_text(otherwise: str) -> str:
    """Say why estimates by confidence, with which the verdict were another, were not asked."""
    return (
        "estimates by confidence were not asked, since a method's loss raises confidence on the "
        f"target, whether right or not; with them the verdict would be: {otherwise}"
    )
