"""What ``daptkit data check`` prints for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from daptkit.cli.output import print_columns

_SHOWN = 5
_CLASSES = 20
_INDENT = "  "


def print_found(found: Mapping[str, Any]) -> None:
    """Print a result of :func:`daptkit.recipes.check_data`.

    Long lists are cut, with the number of what is left out; the JSON has all of it.
    """
    for domain, summary in found["domains"].items():
        click.echo(f"{domain}: {summary['path']}")
        _print_domain(summary)
    _print_duplicates(found["duplicates"])
    _print_problems(found["problems"])
    if found["manifest"] is not None:
        _print_manifest(found["manifest"])
    click.echo(_conclusion(found["problems"]))


def _print_domain(summary: Mapping[str, Any]) -> None:
    _print_table(_facts(summary))
    if summary["classes"]:
        click.echo()
        _print_classes(summary)
    if summary["unreadable"]:
        click.echo(f"\n{_INDENT}unreadable:")
        _print_list(_reasons(summary["unreadable"]))
    for note in summary["notes"]:
        click.echo(f"{_INDENT}note: {note}")
    click.echo()


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a name and the text of each fact that there is."""
    readable = summary["readable"] if summary["unreadable"] else "all"
    yield "images", f"{summary['images']}, {readable} readable"
    if summary["splits"]:
        yield "splits", _counts(summary["splits"])
    if summary["sites"]:
        yield "sites", _counts(summary["sites"])
    yield "patients", _patients(summary["patients"])
    sizes = [(f"{s['width']} x {s['height']}", s["images"]) for s in summary["sizes"]]
    if sizes:
        yield "sizes", _counts(dict(sizes))
    for pixels in summary["pixels"]:
        yield "pixels", _pixels(pixels)
    if any(entry["frames"] > 1 for entry in summary["frames"]):
        yield "frames", _counts({str(f["frames"]): f["images"] for f in summary["frames"]})
    for dtype, at in summary["levels"].items():
        yield (
            "levels",
            f"{dtype}: min {at['min']:g}, 1% {at['p1']:g}, median {at['p50']:g}, "
            f"99% {at['p99']:g}, max {at['max']:g}",
        )
    for name, counts in summary["covariates"].items():
        yield name.replace("_", " "), _counts(counts)


def _print_classes(summary: Mapping[str, Any]) -> None:
    by_split: Mapping[str, Mapping[str, int]] = summary["classes_by_split"]
    splits = sorted({split for counts in by_split.values() for split in counts})
    shown = splits if any(splits) else []
    rows = [("class", "images", *(split or "no split" for split in shown))]
    rows += [
        (label, str(total), *(str(by_split[label].get(split, 0)) for split in shown))
        for label, total in list(summary["classes"].items())[:_CLASSES]
    ]
    _print_table(rows)
    _print_list(_more(len(summary["classes"]), _CLASSES))


def _patients(patients: Mapping[str, int]) -> str:
    if not patients["known"]:
        return "none known"
    text = f"{patients['known']}, with up to {patients['most_images']} images each"
    without = patients["images_without"]
    return f"{text}; {without} images name none" if without else text


def _pixels(pixels: Mapping[str, Any]) -> str:
    channels = {1: "grey", 3: "colour"}.get(pixels["channels"], f"{pixels['channels']} channels")
    bits = f", {pixels['bits']} bits used" if pixels["bits"] else ""
    return f"{pixels['dtype']} {channels} {pixels['photometric']}{bits} ({pixels['images']})"


def _print_duplicates(duplicates: Mapping[str, Any]) -> None:
    for kind, title in (("exact", "equal images"), ("near", "images that look alike")):
        groups = duplicates[kind]
        click.echo(f"{title}: {len(groups) or 'no'} {'group' if len(groups) == 1 else 'groups'}")
        # Groups that may spoil a run come first.
        ordered = sorted(groups, key=lambda group: -sum(map(bool, _marks(group))))
        _print_list([*map(_group, ordered[:_SHOWN]), *_more(len(groups))])
    click.echo()


def _group(group: Mapping[str, Any]) -> str:
    names = _listed([f"{image['name']} ({image['domain']})" for image in group["images"]])
    marks = ", ".join(filter(None, _marks(group)))
    return f"{names}: {marks}" if marks else names


def _marks(group: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "across domains" if group["across_domains"] else "",
        "across splits" if group["across_splits"] else "",
        "different labels" if group["conflicting_labels"] else "",
        "" if group["one_patient"] else "not known to be one patient",
    )


def _print_problems(problems: Sequence[Mapping[str, str]]) -> None:
    if problems:
        _print_table(
            (problem["level"], problem["domain"] or "all", " ".join(problem["message"].split()))
            for problem in problems
        )
        click.echo()


def _print_manifest(manifest: Mapping[str, Any]) -> None:
    out = manifest["left_out"]
    click.echo(f"manifest: {manifest['file']}, {manifest['rows']} rows, {len(out)} left out")
    _print_list(_reasons(out))
    click.echo()


def _conclusion(problems: Sequence[Mapping[str, str]]) -> str:
    errors = sum(problem["level"] == "error" for problem in problems)
    answer = "refuse" if errors else "take"
    return f"adapt would {answer} this data (errors: {errors}, warnings: {len(problems) - errors})."


def _reasons(entries: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for entry in entries[:_SHOWN]:
        yield f"{entry['name']}: {entry['reason']}"
    yield from _more(len(entries))


def _counts(counts: Mapping[str, int]) -> str:
    return _listed([f"{name} ({number})" for name, number in counts.items()])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:_SHOWN], *_more(len(texts))])


def _more(count: int, shown: int = _SHOWN) -> Iterator[str]:
    if count > shown:
        yield f"and {count - shown} more"


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    first, *others = [(f"{_INDENT}{row[0]}", *row[1:]) for row in rows]
    print_columns(first, others)


def _print_list(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"{2 * _INDENT}{line}")
