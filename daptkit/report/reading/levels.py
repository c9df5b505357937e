"""Sentences on how far a method brought the levels of the target's images to the source's."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.report.reading.words import Report, number

_VIEWS = {
    "Source": "source",
    "Source after": "source_after",
    "Target before": "target",
    "Target after": "target_after",
}

SAME_DISTANCE = 0.005
"""Change of a distance of levels, which run from 0 to 1, below which it counts as the same."""


@dataclass(frozen=True)
class Channel:
    """One row of the table: a channel, its mean and spread in each view, its distances."""

    name: str
    views: tuple[str, ...]
    before: str
    after: str


def view_names(report: Report) -> list[str]:
    """Return the heads of the columns of mean and spread."""
    return [name for name, view in _VIEWS.items() if view in report["images"]["shares"]]


def channels(report: Report) -> list[Channel]:
    """Return the rows of the table of channels."""
    images = report["images"]
    keys = [_VIEWS[name] for name in view_names(report)]
    return [
        Channel(
            name=name,
            views=tuple(
                f"{number(images['mean'][key][k])} ± {number(images['spread'][key][k])}"
                for key in keys
            ),
            before=number(images["distance"]["before"][k], 3),
            after=number(images["distance"]["after"][k], 3),
        )
        for k, name in enumerate(images["channels"])
    ]


def what_it_did(report: Report) -> str:
    """Say whether the target's levels came closer to the source's."""
    images = report["images"]
    before, after = (
        sum(found) / len(found) for found in (images["distance"][k] for k in ("before", "after"))
    )
    said = f"the distance of the target’s levels from the source’s went from {number(before, 3)} to"
    said += f" {number(after, 3)}"
    if after < before - SAME_DISTANCE:
        return f"{images['method']} brought the images closer: {said}."
    if after > before + SAME_DISTANCE:
        return (
            f"{images['method']} did not bring the levels closer: {said}. It may work on something"
            " else, such as colours taken together or textures; if not, leave it out."
        )
    return f"{images['method']} hardly changed the levels as a whole: {said}."
