"""Sentences on how far apart the sites lie in the features."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daptkit.report.reading.words import (
    Report,
    count,
    is_adapted,
    last,
    listing,
    number,
    significant,
)

SAME_A_DISTANCE = 0.1
"""Change of the proxy A-distance below which two models count as alike; it runs from 0 to 2."""

SAME_ACCURACY = 0.02
"""The same for the k-NN domain accuracy."""

LEAST = 15
"""Images of each site below which no divergence is measured."""

MOST = 2000
"""Images of each site that a divergence is measured on at most."""

SAME_MMD2 = 0.001
"""The same for MMD²; beyond it a tenth of the value counts as a change."""

SAME_NUMBER = 0.005
"""Difference below which two numbers look alike on the page."""


NAMES = {
    "proxy_a_distance": "Proxy A-distance",
    "mmd2": "MMD²",
    "knn_domain_accuracy": "k-NN domain accuracy",
}


@dataclass(frozen=True)
class Measure:
    """One row of the table of divergences: its name, values by model, and how it is read."""

    key: str
    name: str
    values: tuple[str, ...]
    how: str


def measures(report: Report) -> list[Measure]:
    """Return the rows of the table of divergences."""
    rows = (
        (
            "proxy_a_distance",
            number,
            "0: a classifier cannot tell from the features which site an image is from;"
            " 2: it always can.",
        ),
        (
            "mmd2",
            significant,
            "Near 0: equal distributions; chance may take it a little below. Its scale depends on"
            " the features: no fixed mark.",
        ),
        (
            "knn_domain_accuracy",
            number,
            "How often most of an image’s five nearest neighbours, of other patients, are from its"
            " own site. 0.5: well mixed; 1: apart.",
        ),
    )
    return [
        Measure(
            key,
            NAMES[key],
            tuple(write(report["divergence"][m][key]) for m in report["models"]),
            how,
        )
        for key, write, how in rows
    ]


def closeness(report: Report) -> str:
    """Say whether the sites came closer together in the features."""
    after = report["divergence"][last(report)]["proxy_a_distance"]
    scale = "(0: the sites cannot be told apart by their features; 2: they always can)"
    if after is None:
        return (
            "How far the sites lie apart in the features could not be measured: that takes"
            f" {LEAST} images and 2 patients of each site, and features that are not all alike."
        )
    if not is_adapted(report):
        return (
            f"In the model’s features the sites have a proxy A-distance of {number(after)} {scale}."
        )
    before = report["divergence"]["source-only"]["proxy_a_distance"]
    if before is None:
        return (
            f"In the adapted model’s features the sites have a proxy A-distance of {number(after)}"
            f" {scale}."
        )
    n = images_a_site(report)
    if SAME_A_DISTANCE <= abs(after - before) < margin(before, after, n):
        return (
            f"The proxy A-distance of the sites is {number(after)} in the adapted model’s features"
            f" and {number(before)} in the source-only model’s {scale}, a difference that chance in"
            f" {count(n)} images a site can explain."
        )
    if abs(after - before) < SAME_A_DISTANCE:
        return (
            "By their features a linear classifier tells the sites apart about as well as before:"
            f" proxy A-distance {number(before)} before, {number(after)} after {scale}."
            f"{_others(report)}"
        )
    place, change = ("closer together", "fell") if after < before else ("further apart", "rose")
    return (
        f"In the adapted model’s features the sites lie {place} than in the source-only model’s:"
        f" the proxy A-distance {change} from {number(before)} to {number(after)} {scale}."
    )


def agreement(report: Report) -> str:
    """Say whether the three measures agree, and what they cannot show."""
    caution = (
        "Closeness alone does not say that images of the same class came together: features that"
        " lost the task also mix, and sites with different class frequencies keep some distance."
    )
    if not is_adapted(report):
        return ""
    if any(report["divergence"][m][key] is None for m in report["models"] for key in NAMES):
        return caution
    fell, rose = _fell_and_rose(report)
    if len(fell) == len(NAMES):
        return f"All three measures fell. {caution}"
    if len(rose) == len(NAMES):
        return "All three measures rose: the sites are easier to tell apart after adapting."
    said = [f"{listing(names)} {verb}" for names, verb in ((fell, "fell"), (rose, "rose")) if names]
    unsure = " They disagree, so no single one should be quoted." if fell and rose else ""
    if not said:
        return "None of the three measures changed much."
    rest = "" if len(fell + rose) == len(NAMES) else "; the rest changed little"
    text = f"{', '.join(said)}{rest}.{unsure}"
    return f"{text} {caution}" if fell else text


def _fell_and_rose(report: Report) -> tuple[list[str], list[str]]:
    """Return the names of the measures that changed by more than chance; all must be known."""
    before, after = (report["divergence"][m] for m in report["models"])
    n = images_a_site(report)
    tolerances = {
        "proxy_a_distance": margin(before["proxy_a_distance"], after["proxy_a_distance"], n),
        # Unbiased, it may lie a little below 0.
        "mmd2": max(0.1 * abs(before["mmd2"]), SAME_MMD2),
        "knn_domain_accuracy": max(
            SAME_ACCURACY,
            _chance_of_rates(before["knn_domain_accuracy"], after["knn_domain_accuracy"], n),
        ),
    }
    changes = {key: after[key] - before[key] for key in tolerances}
    fell = [NAMES[key] for key in tolerances if changes[key] < -tolerances[key]]
    rose = [NAMES[key] for key in tolerances if changes[key] > tolerances[key]]
    return fell, rose


def _others(report: Report) -> str:
    """Say what the other measures did where the proxy A-distance stayed."""
    before, after = (report["divergence"][m] for m in report["models"])
    if any(d[key] is None for d in (before, after) for key in NAMES):
        return ""
    fell, rose = _fell_and_rose(report)
    values = {
        NAMES["mmd2"]: f"{significant(before['mmd2'])} to {significant(after['mmd2'])}",
        NAMES["knn_domain_accuracy"]: (
            f"{number(before['knn_domain_accuracy'])} to {number(after['knn_domain_accuracy'])}"
        ),
    }
    parts = [
        f"{name} {verb} from {values[name]}"
        for verb, names in (("fell", fell), ("rose", rose))
        for name in names
        if name in values
    ]
    return f" {listing(parts)}." if parts else ""


def basis(report: Report) -> str:
    """Say which images the divergences are measured on."""
    of, data = report["embedding"]["of"], report["data"]
    target = f"{count(of['target'])} target images"
    if of["source"] == data["source_val"]:
        return f"Measured on {count(of['source'])} source images kept out of training and {target}."
    return (
        f"Measured on all {count(of['source'])} source images, those trained on included, since few"
        f" were kept out, and {target}."
    )


def images_a_site(report: Report) -> int:
    """Return how many images of each site the divergences compare."""
    of = report["embedding"]["of"]
    return min(MOST, int(of["source"]), int(of["target"]))


def margin(before: float, after: float, n: int) -> float:
    """Return the change of the proxy A-distance up to which two models count as alike.

    Args:
        before: of one model, 2 (1 - 2 err).
        after: of the other.
        n: images of each domain that err was counted on; chance explains a larger change in few.
    """
    return max(SAME_A_DISTANCE, 4 * _chance_of_rates((2 - before) / 4, (2 - after) / 4, n))


def _chance_of_rates(first: float, second: float, n: int) -> float:
    """Return the difference of two rates that 2n images each exceed by chance 1 time in 20."""
    return 1.96 * math.sqrt((first * (1 - first) + second * (1 - second)) / (2 * n))


def stage_sentences(report: Report) -> list[str]:
    """Say where in the network the sites differ, and where adapting changed that."""
    stages = report["stages"]
    layers = stages["layers"]
    before = dict(zip(layers, stages["proxy_a_distance"]["source-only"], strict=True))
    known = {layer: value for layer, value in before.items() if value is not None}
    if not known:
        return []
    far, near = max(known.values()), min(known.values())
    n = min(stages["shown"].values())
    if far - near < margin(far, near, n):
        first = f"about equally easy to tell apart at all stages ({number(near)} to {number(far)})."
    else:
        first = (
            f"easiest to tell apart at {_at(known, far)} ({number(far)}) and hardest at"
            f" {_at(known, near)} ({number(near)})."
        )
    lines = [f"In the source-only model the sites are {first}"]
    if not is_adapted(report):
        return lines
    after = dict(zip(layers, stages["proxy_a_distance"]["adapted"], strict=True))
    both = [layer for layer in known if after[layer] is not None]
    if not both:
        return lines
    most = max(both, key=lambda layer: abs(after[layer] - known[layer]))
    change = abs(after[most] - known[most])
    if change < SAME_A_DISTANCE:
        return [*lines, f"Adapting changed it at no stage by more than {SAME_A_DISTANCE:g}."]
    if change < margin(known[most], after[most], n):
        return [
            *lines,
            f"Adapting changed it most at “{most}”, from {number(known[most])} to"
            f" {number(after[most])}, which chance in {count(n)} images a site can explain.",
        ]
    return [
        *lines,
        f"Adapting changed it most at “{most}”, from {number(known[most])} to"
        f" {number(after[most])}" + _first_stage(both, most, known, after),
    ]


def _at(distances: dict[str, float], value: float) -> str:
    stages = [name for name, distance in distances.items() if abs(distance - value) < SAME_NUMBER]
    more = len(stages) - 1
    others = f" and {more} other stage{'s' if more > 1 else ''}" if more else ""
    return f"“{stages[0]}”{others}"


def _first_stage(
    layers: list[str], most: str, before: dict[str, float], after: dict[str, float]
) -> str:
    first = layers[0]
    if first == most:
        return ", the earliest stage measured."
    if abs(after[first] - before[first]) < SAME_NUMBER:
        return f"; at the earliest stage, “{first}”, it stayed at {number(after[first])}."
    ends = f"from {number(before[first])} to {number(after[first])}"
    return f"; at the earliest stage, “{first}”, {ends}."
