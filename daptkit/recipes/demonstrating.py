"""The whole job on two synthetic sites, scored against the truth that is known there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daptkit.config import resolve_config
from daptkit.data import PHANTOM_CLASSES, simulate_sites
from daptkit.data.simulate import SOURCE_SITE, TARGET_SITE
from daptkit.host import method_options
from daptkit.recipes.adapting import adapt
from daptkit.recipes.evaluating import evaluate
from daptkit.report import build_report
from daptkit.run import RunFolder, claim_folder
from daptkit.train.adaptation import AdaptResult
from daptkit.train.progress import Reporter, SilentReporter

WHY_KNOWN = (
    "The images are synthetic, so the true class of every target image is known. The scores are"
    " those of the target's test split, which training did not see."
)
_SCORES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo draws and how long it trains.

    Args:
        n_images: images of each site, a quarter of them for the scores at the end.
        size: edge of the images in pixels.
        epochs: length of both trainings.
        report: whether to write the report.
    """

    n_images: int = 2000
    size: int = 48
    epochs: int = 30
    report: bool = True

    def options(self) -> dict[str, Any]:
        """Return the options of ``adapt``."""
        return {
            "method": "dann+bbse",
            # The network starts from nothing: it learns its classes before they are aligned.
            "method_options": {"dann": {"delay": 0.3}},
            "model": "daptkit_lenet",
            "mean": (0.25,),
            "std": (0.25,),
            "epochs": self.epochs,
            "aug": "xray",
            "report": self.report,
        }


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: its folder, the closing text, and the figures behind it."""

    out: Path
    summary: str
    data: dict[str, Any]


def demo(
    out: str | Path = "daptkit-demo",
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> DemoResult:
    """Draw two synthetic sites, adapt from one to the other and score both models.

    The target's scanner has less contrast, darker middle tones, blur and noise, and its patients
    have fewer lesions. ``OUT/sites`` holds the images, ``OUT/run`` the run with its report.

    Args:
        out: folder to write; new or empty.
        seed: seed of the images and of both trainings.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        reporter: where progress goes; nowhere by default.

    Raises:
        UsageError: ``out`` is not empty, or dann or bbse is not installed.
    """
    report = reporter or SilentReporter()
    return run_demo(Path(out), DemoPlan(), seed, device, workers, report)


def run_demo(
    out: Path, plan: DemoPlan, seed: int, device: str, workers: int | None, reporter: Reporter
) -> DemoResult:
    """Run the demo at the size of a plan; see :func:`demo`."""
    sites, run = out / "sites", RunFolder(out / "run")
    source, target = str(sites / "source"), str(sites / "target")
    config = resolve_config(
        {
            **plan.options(),
            "source": (source,),
            "target": target,
            "out": str(run.root),
            "seed": seed,
            "device": device,
            "workers": workers,
        },
        None,
        method_options,
    )
    claim_folder(out)
    reporter.line(f"drawing two synthetic sites of {plan.n_images} images each")
    simulate_sites(sites, n_source=plan.n_images, n_target=plan.n_images, seed=seed, size=plan.size)
    result = adapt(config, reporter=reporter)
    reporter.line("scoring both models on the target's test images, whose classes are known")
    scores = {
        name: evaluate(folder, target, split="test", seed=seed, device=device, workers=workers)
        for name, folder in (("source-only", run.twin.root), ("adapted", run.root))
    }
    if plan.report:
        truth = {"why": WHY_KNOWN, "scores": scores}
        build_report(run.root, true_scores=truth, device=device, workers=workers, reporter=reporter)
    data = _data(out, plan, seed, result, scores)
    return DemoResult(out, summary_of(data), data)


def summary_of(data: Mapping[str, Any]) -> str:
    """Return the closing text of the figures that :class:`DemoResult` holds."""
    before, after = data["scores"]["source-only"], data["scores"]["adapted"]
    lines = [
        "Both sites are synthetic: drawn phantoms of chest slices, no patient's images.",
        f"  source  {data['n_train']} labelled images to train on",
        f"  target  {data['n_train']} images to adapt to, without their labels; the scanner has"
        " less",
        "          contrast, darker middle tones, blur and noise, and fewer images show a lesion",
        "",
        f"True scores on {before['n']} further images of the target, with 95% intervals:",
        f"{'':<20}{'before: source-only':<24}after: {data['method']}",
        *(
            f"{title:<20}{_interval(before[name]):<24}{_interval(after[name])}"
            for name, title in _SCORES.items()
        ),
        "",
        *_prior_lines(data["prior"]),
        "",
        f"images: {data['sites']}",
        f"report: {data['report']}" if data["report"] else f"run: {data['run']}",
        "next, with folders of your own:",
        "  daptkit adapt --source SITE_A --target SITE_B -m dann+bbse --out run",
    ]
    return "\n".join(lines)


def _data(
    out: Path,
    plan: DemoPlan,
    seed: int,
    result: AdaptResult,
    scores: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    run = RunFolder(result.out)
    return {
        "synthetic": True,
        "seed": seed,
        "method": plan.options()["method"],
        "sites": str(out / "sites"),
        "run": str(run.root),
        "report": str(run.report) if plan.report else None,
        "n_train": plan.n_images - scores["adapted"]["n"],
        "scores": scores,
        "gain": {
            name: scores["adapted"][name]["value"] - scores["source-only"][name]["value"]
            for name in _SCORES
        },
        "prior": _prior(result.data["figures"]["prior"]["target"]),
    }


def _prior(estimate: Mapping[str, float] | None) -> dict[str, Any]:
    """Set the estimated target prior beside the one that the site was drawn with."""
    true = dict(zip(PHANTOM_CLASSES, TARGET_SITE.prevalence, strict=True))
    source = dict(zip(PHANTOM_CLASSES, SOURCE_SITE.prevalence, strict=True))
    found = None if estimate is None else {name: estimate[name] for name in true}
    error = None if found is None else float(np.abs([found[c] - true[c] for c in true]).sum())
    return {"source": source, "target": true, "estimate": found, "l1_error": error}


def _prior_lines(prior: Mapping[str, Any]) -> list[str]:
    rows = {"at the source": "source", "at the target": "target", "target, estimated": "estimate"}
    lines = [f"{'class frequencies':<20}" + "".join(f"{c:>11}" for c in prior["source"])]
    lines += [
        f"  {title:<18}" + "".join(f"{share:>11.3f}" for share in prior[name].values())
        for title, name in rows.items()
        if prior[name] is not None
    ]
    if prior["estimate"] is None:
        lines.append("  bbse did not trust its estimate and left the source's; the report says why")
    return lines


def _interval(score: Mapping[str, float | None]) -> str:
    value, low, high = (score[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
