"""A second site made out of any labelled one, with a shift that is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daptkit
from daptkit.data import choose_frames, fit_conversion, parse_frames, parse_window, read_table
from daptkit.data.population import draw_population
from daptkit.data.rescan import Rescanner, site_scales
from daptkit.errors import UsageError
from daptkit.recipes.simulated_site import (
    ImageWriter,
    SiteFolder,
    labels_truth,
    manifest_csv,
    refuse_unreadable,
    write_records,
)
from daptkit.scanner import ScannerShift, build_shift
from daptkit.train.plugins import parse_reader_options, plugin_readers
from daptkit.train.progress import Reporter, SilentReporter


@dataclass(frozen=True)
class SimulateResult:
    """What was made: its folder, the closing text, and the truth but for the single images."""

    out: Path
    summary: str
    data: dict[str, Any]


def simulate(
    path: str | Path,
    *,
    out: str | Path,
    preset: str | None = None,
    shift: Mapping[str, float] | None = None,
    prior: Mapping[str, float] | None = None,
    label_noise: float = 0.0,
    redefine: Mapping[str, tuple[str, float]] | None = None,
    split: str | None = None,
    seed: int = 0,
    frames: str | None = None,
    window: str | None = None,
    reader_options: Sequence[str] = (),
    workers: int | None = None,
    skip_unreadable: int = 0,
    reporter: Reporter | None = None,
) -> SimulateResult:
    """Make a second site out of a labelled one: another scanner, other priors, other labels.

    Writes ``OUT/images/<row>.png``, ``OUT/manifest.csv``, which ``adapt`` and ``evaluate`` read,
    and ``OUT/truth.json`` with everything that was done; the manifest comes last. The images keep
    their patients' ids. A prior draws images, not patients, so a patient may keep some of them.
    The truth holds no path and no patient.

    Args:
        path: labelled images: folder of class folders, CSV manifest or ``.npz``.
        out: folder to write; new or empty.
        preset: a name of :data:`daptkit.scanner.PRESETS`.
        shift: fields of :class:`daptkit.scanner.ScannerShift`, over the preset.
        prior: class to its share; classes not named share the rest in their old proportions.
        label_noise: share of the labels that is replaced by another class.
        redefine: class A to (class B, share): that share of A's images is labelled B.
        split: split to use, or ``"all"``; everything by default.
        seed: of all draws; what an image gets depends on it and on the image's row only.
        frames: ``first``, ``middle``, ``all`` or a number: frames of files with several.
        window: ``LOW:HIGH``, the pixel values of black and white in deep images that do not say;
            their 0.5 and 99.5 percentiles by default.
        reader_options: ``READER.OPTION=VALUE`` texts.
        workers: threads; the CPU count by default.
        skip_unreadable: tolerate and list up to this many unreadable images.
        reporter: where progress goes; nowhere by default.

    Raises:
        UsageError: options that cannot work, ``out`` not empty or inside ``path``, or a stain for
            grey images.
        DataError: images or labels that cannot be used, or a prior for a class without
            images.
    """
    report = reporter or SilentReporter()
    folder, scanner = SiteFolder(Path(out)), build_shift(preset, shift or {})
    fixed = None if window is None else parse_window(window)
    policy = None if frames is None else parse_frames(frames)
    _refuse_inside(folder.root, Path(path))
    readers = plugin_readers(report.line, parse_reader_options(reader_options))
    table = read_table(path, domain="source", labelled=True, log=report.line, readers=readers)
    table = choose_frames(table, policy, readers)
    people = draw_population(
        table,
        split=split,
        prior=prior or {},
        redefinitions=redefine or {},
        label_noise=label_noise,
        seed=seed,
    )
    # Windows of all splits, so that sites made of different ones have the same scale.
    windows = fit_conversion([table], img_size=1, in_chans=1, readers=readers, fixed=fixed).windows
    rescanner = Rescanner(scanner, site_scales(windows), seed)
    writer = ImageWriter(table=table, readers=readers, rescanner=rescanner, folder=folder)
    folder.claim()
    with folder.undone_on_failure():
        written = writer.write_all(people.rows, workers, report)
        refuse_unreadable(table, written, skip_unreadable, report)
        scales = {kind: rescanner.scales[kind] for kind in sorted(written.kinds)}
        truth = {
            "daptkit": daptkit.__version__,
            "asked": {
                "seed": seed,
                "split": split or "all",
                "preset": preset,
                "redefine": dict(redefine or {}),
                "label_noise": label_noise,
            },
            "shift": dataclasses.asdict(scanner),
            "stain": None if rescanner.stain is None else rescanner.stain.to_json(),
            "levels": {kind: scale.to_json() for kind, scale in scales.items()},
            **labels_truth(people, folder, written),
        }
        write_records(folder, truth, manifest_csv(table, folder, written.rows, people.after))
    data = {
        "manifest": str(folder.manifest),
        "truth": str(folder.truth),
        "n_images": len(written.rows),
        **{name: value for name, value in truth.items() if name != "images"},
    }
    same_scale = all(scale.kept for scale in scales.values())
    return SimulateResult(folder.root, summary_of(data, path, same_scale=same_scale), data)


def summary_of(data: Mapping[str, Any], path: str | Path, *, same_scale: bool) -> str:
    """Return the closing text of the figures that :class:`SimulateResult` holds.

    Args:
        data: the figures.
        path: the old site.
        same_scale: whether both sites' files have the same pixel values for black and white.
    """
    counts, prior = data["counts"], data["prior"]
    width = max(len(name) for name in ("class", *counts["before"]))
    lines = [
        f"{data['n_images']} images of a simulated site",
        f"scanner: {_changes(data['shift'])}",
        f"{'class':<{width}}  {'before':<16}after",
    ]
    for name in counts["before"]:
        old, new = (f"{counts[k][name]} ({prior[k][name]:.3f})" for k in ("before", "after"))
        lines.append(f"{name:<{width}}  {old:<16}{new}")
    redefined = sum(one["images"] for one in data["redefined"])
    noisy = data["label_noise"]["images"]
    if redefined or noisy:
        lines.append(f"labels: {redefined} redefined, {noisy} replaced by noise")
    if data["skipped"]:
        lines.append(f"unreadable images left out: {len(data['skipped'])}")
    lines += [f"manifest: {data['manifest']}", f"truth: {data['truth']}"]
    reasons = [] if data["asked"]["split"] != "all" else ["both sites show the same patients"]
    reasons += [] if same_scale else ["their files have different pixel values for black and white"]
    if reasons:
        lines += [
            f"note: {', and '.join(reasons)}. For a fair comparison make the source in the same"
            " way from another split, without a shift:",
            f"  daptkit data simulate {path} --split NAME --out SOURCE",
        ]
    return "\n".join(lines)


def _changes(shift: Mapping[str, float]) -> str:
    unchanged = dataclasses.asdict(ScannerShift())
    changed = [f"{name} {value:g}" for name, value in shift.items() if value != unchanged[name]]
    return ", ".join(changed) or "unchanged"


def _refuse_inside(out: Path, path: Path) -> None:
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise UsageError(
            f"--out '{out}' is inside '{path}', whose images would then be those of both sites;"
            " name a folder elsewhere."
        )
