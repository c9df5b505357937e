"""A made report.json and embedding.csv: every number is drawn, so that a page can be checked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.metrics import score

CLASSES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
NASTY = ("a <b> & $c_1$ 'd'", "x" * 60, "plain_name", "50% $\\frac", "ümlaut")
MODELS = ("source-only", "adapted")
STAGES = ("blocks.0", "blocks.2", "blocks.4", "blocks.6", "features (bottleneck)", "logits")
_MEASURES = ("proxy_a_distance", "mmd2", "knn_domain_accuracy")


def full_report(classes: Sequence[str] = CLASSES, seed: int = 0) -> dict[str, Any]:
    """A report of two models with everything a report can hold but true scores."""
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(len(classes), 4.0))
    target = rng.dirichlet(np.full(len(classes), 4.0))
    scores = [_scores(classes, skill, seed) for skill in (1.9, 2.0)]
    return {
        "format": 1,
        "models": list(MODELS),
        "run": _run(),
        "data": {
            "classes": list(classes),
            "source_train": 2460,
            "source_val": 240,
            "target": 3571,
            "patients_known": {"source": True, "target": False},
            "patients": {"source": 812, "target": None},
            "skipped_unreadable": 3,
            "sha256": {"source": "a1" * 32, "target": "b2" * 32},
            "source_counts": _named(classes, (2460 * prior).round().astype(int)),
            "sites": {"north": 1500, "south": 1200},
        },
        "embedding": {
            "kind": "umap",
            "why_pca": None,
            "seed": 0,
            "shown": {"source": 1000, "target": 1000},
            "of": {"source": 2700, "target": 3571},
            "dims": 256,
        },
        "divergence": {
            "source-only": dict(zip(_MEASURES, (1.942, 0.1493, 0.9496), strict=True)),
            "adapted": dict(zip(_MEASURES, (0.881, 0.0217, 0.6604), strict=True)),
        },
        "stages": {
            "shown": {"source": 240, "target": 256},
            "layers": list(STAGES),
            "proxy_a_distance": {
                "source-only": [1.61, 1.72, 1.85, 1.93, 1.94, 1.71],
                "adapted": [1.61, 1.70, 1.62, 1.31, 0.88, 0.62],
            },
            "mmd2": {
                "source-only": [0.041, 0.052, 0.071, 0.121, 0.149, 0.097],
                "adapted": [0.041, 0.049, 0.044, 0.038, 0.0217, 0.0151],
            },
            "note": None,
        },
        "images": _images(np.random.default_rng(seed)),
        "prior": {
            "source": _named(classes, prior),
            "predicted_twin": _named(classes, rng.dirichlet(np.full(len(classes), 4.0))),
            "predicted": _named(classes, 0.7 * target + 0.3 * prior),
            "target": _named(classes, target),
            "target_low": _named(classes, 0.8 * target),
            "target_high": _named(classes, np.minimum(1.3 * target + 0.02, 1.0)),
        },
        "predicted": {m: _named(classes, rng.dirichlet(np.ones(len(classes)))) for m in MODELS},
        "collapse": {"fractions": _named(classes, target), "never": [], "collapsed": False},
        "notes": ["bbse: two estimates of the target prior differ by 0.12."],
        "method_reports": {
            "dann": {},
            "bbse": {"method": "em", "trusted": True, "reasons": [], "ess": 352.07, "low": [0.1]},
        },
        "training": {"source-only": _training(rng, None), "adapted": _training(rng, "dann")},
        "source_validation": dict(zip(MODELS, scores, strict=True)),
        "source_validation_by_site": {
            m: {
                "north": {"n": 130, "accuracy": 0.861, "balanced_accuracy": 0.823},
                "south": {"n": 110, "accuracy": 0.842, "balanced_accuracy": 0.817},
            }
            for m in MODELS
        },
        "calibration": {m: _calibration(rng) for m in MODELS},
        "true_scores": None,
    }


def _images(rng: np.random.Generator) -> dict[str, Any]:
    """Levels of two sites in colour, the target's redder and flatter before."""
    parts = {"source": (0.62, 0.14), "target": (0.71, 0.09), "target_after": (0.62, 0.135)}
    shares = {}
    for view, (mean, spread) in parts.items():
        means = mean + np.array([0.1, -0.05, 0.0]) * (1 if view == "target" else 0.3)
        values = rng.normal(means[:, None], spread, (3, 4000)).clip(0, 1)
        counts = np.stack([np.histogram(v, 64, (0, 1))[0] for v in values])
        shares[view] = counts / counts.sum(axis=1, keepdims=True)
    middles = (np.arange(64) + 0.5) / 64
    mean = {view: part @ middles for view, part in shares.items()}
    spread = {v: np.sqrt(part @ middles**2 - mean[v] ** 2) for v, part in shares.items()}
    gaps = {"before": shares["target"], "after": shares["target_after"]}
    return {
        "method": "colour",
        "shown": {"source": 256, "target": 256},
        "channels": ["red", "green", "blue"],
        "shares": {view: part.tolist() for view, part in shares.items()},
        "mean": {view: part.tolist() for view, part in mean.items()},
        "spread": {view: part.tolist() for view, part in spread.items()},
        "distance": {
            name: (np.abs((part - shares["source"]).cumsum(axis=1)).sum(axis=1) / 64).tolist()
            for name, part in gaps.items()
        },
    }


def small_report(classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    """A report of two models with few points and no curves, which is drawn faster."""
    full = full_report(classes)
    shown = {"source": 20, "target": 20}
    return full | {
        "embedding": full["embedding"] | {"shown": shown},
        "stages": {"layers": [], "note": None},
        "training": {},
    }


def with_true_scores(data: dict[str, Any]) -> dict[str, Any]:
    """The same report of a run whose target is synthetic."""
    scores = {m: _scores(data["data"]["classes"], 1.2 + i, 7) for i, m in enumerate(data["models"])}
    why = "The images are synthetic, drawn by daptkit itself, so the truth is known."
    return data | {"true_scores": {"why": why, "scores": scores}}


def bare_report() -> dict[str, Any]:
    """A report of one model, with null wherever a report may hold one."""
    full = full_report()
    empty = {"value": None, "low": None, "high": None}
    scores = full["source_validation"]["source-only"]
    overall = ("accuracy", "balanced_accuracy", "auroc", "ece", "nll", "brier")
    return full | {
        "models": ["source-only"],
        "run": full["run"] | {"method": "none", "methods": {}, "weights": None, "twin": "self"},
        "data": full["data"]
        | {
            "patients_known": {"source": False, "target": False},
            "patients": {"source": None, "target": None},
            "skipped_unreadable": 0,
            "sites": {},
        },
        "embedding": full["embedding"]
        | {
            "kind": "pca",
            "why_pca": "Fewer than 100 images are shown, too few for UMAP.",
            "shown": {"source": 30, "target": 30},
            "of": {"source": 30, "target": 30},
        },
        "divergence": {"source-only": dict.fromkeys(_MEASURES)},
        "stages": {"layers": [], "note": "No stage of this network gives one array of features."},
        "prior": full["prior"]
        | dict.fromkeys(("predicted", "target", "target_low", "target_high")),
        "predicted": {"source-only": full["predicted"]["source-only"]},
        "images": None,
        "notes": [],
        "method_reports": {},
        "training": {"source-only": full["training"]["source-only"]},
        "source_validation": {
            "source-only": scores
            | {"interval": "image", "n_bootstrap": 0}
            | dict.fromkeys(overall, empty)
        },
        "source_validation_by_site": {},
        "calibration": {"source-only": full["calibration"]["source-only"]},
    }


def embedding_csv(data: dict[str, Any], seed: int = 0) -> str:
    """Points of every model: one blob a class, moved between the domains before adapting."""
    rng = np.random.default_rng(seed)
    classes = data["data"]["classes"]
    centres = rng.normal(scale=4.0, size=(len(classes), 2))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["model", "domain", "row", "class", "class_is", "x", "y"])
    for model in data["models"]:
        for domain, class_is in (("source", "label"), ("target", "predicted")):
            shift = 3.0 * (domain == "target") * (1.0 if model == "source-only" else 0.15)
            for row in range(data["embedding"]["shown"][domain]):
                k = int(rng.integers(len(classes)))
                x, y = centres[k] + shift + rng.normal(size=2)
                writer.writerow([model, domain, row, classes[k], class_is, f"{x:.5g}", f"{y:.5g}"])
    return out.getvalue()


def write_run(folder: Path, data: dict[str, Any]) -> Path:
    """Write report.json and embedding.csv as a run folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "embedding.csv").write_text(embedding_csv(data), encoding="utf-8")
    return folder


def _named(classes: Sequence[str], values: npt.NDArray[Any]) -> dict[str, Any]:
    return dict(zip(classes, values.tolist(), strict=True))


def _run() -> dict[str, Any]:
    package = {"package": "daptkit-dann", "version": "0.1.0"}
    return {
        "method": "dann+bbse",
        "methods": {
            "dann": package
            | {
                "summary": "Features that do not tell a discriminator the site.",
                "reference": "arXiv:1505.07818",
            },
            "bbse": {
                "package": "daptkit-bbse",
                "version": "0.1.0",
                "summary": "Estimates class frequencies at the target site.",
                "reference": "arXiv:1802.03916",
            },
        },
        "seed": 0,
        "device": "cpu",
        "model": "mobilenetv2_100",
        "weights": "3463d25c" * 8,
        "finetune": "full",
        "augmentation": "flips and rotations",
        "versions": {"daptkit": "0.1.0", "python": "3.11.7", "torch": "2.14.1+cu130"},
        "timings": {"prepare_seconds": 4.14, "train_seconds": 812.7, "total_seconds": 917.154},
        "options": {
            "img_size": 160,
            "mean": [0.5],
            "lr": 0.01,
            "batch_size": 64,
            "epochs": None,
            "amp": False,
            "decide": "map",
            "dann.weight": 1.0,
            "dann.gamma": 10.0,
            "bbse.estimator": "em",
        },
        "twin": "trained",
    }


def _scores(classes: Sequence[str], skill: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(classes), size=240)
    logits = rng.normal(size=(240, len(classes)))
    logits[np.arange(240), labels] += skill
    posterior = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = posterior.argmax(axis=1)
    return score(
        posterior,
        labels,
        predicted,
        predicted,
        list(classes),
        groups=np.arange(240) // 2,
        patients_known=True,
        n_bootstrap=100,
    )


def _training(rng: np.random.Generator, method: str | None) -> dict[str, Any]:
    steps = np.arange(50, 2001, 50)
    progress = steps / 2000
    noise = rng.normal(scale=0.02, size=(3, len(steps)))
    losses = {"classification": (1.6 * np.exp(-5 * progress) + 0.1 + noise[0]).tolist()}
    logged = {"source_accuracy": (0.95 - 0.5 * np.exp(-6 * progress)).tolist()}
    epochs = np.arange(1, 6)
    epoch = {
        "source_val_loss": [0.61, 0.42, 0.40, 0.47, 0.58],
        "source_val_accuracy": [0.74, 0.81, 0.84, 0.85, 0.85],
    }
    if method:
        losses[f"{method}/domain"] = (0.2 + 0.45 * progress + noise[1]).tolist()
        logged[f"{method}/discriminator_accuracy"] = (0.97 - 0.36 * progress + noise[2]).tolist()
        epoch |= {"bbse/ess": [None, 352.1, 402.7, 399.5, 410.2]}
    return {
        "step": steps.tolist(),
        "lr": (0.01 * (1 + 10 * progress) ** -0.75).tolist(),
        "losses": losses,
        "logged": logged,
        "epoch_step": (epochs * 400).tolist(),
        "epoch": epoch,
    }


def _calibration(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "n": 240,
        "cross_fitted": True,
        "calibrated": _curve(rng, 0.0),
        "uncalibrated": _curve(rng, 0.12),
        "choice": {
            "kind": "bcts",
            "nll": {"temperature": 0.4312, "bcts": 0.4021, "vector": 0.4019},
            "standard_error": {"temperature": 0.004, "bcts": 0.001, "vector": 0.0},
            "folds": 5,
            "note": "",
        },
    }


def _curve(rng: np.random.Generator, over: float) -> dict[str, Any]:
    bins = []
    for b in range(5, 15):
        confidence = (b + 0.5) / 15
        bins.append(
            {
                "low": b / 15,
                "high": (b + 1) / 15,
                "n": 4 * (b - 4),
                "confidence": confidence,
                "accuracy": float(np.clip(confidence - over + rng.normal(scale=0.04), 0.0, 1.0)),
            }
        )
    total = sum(b["n"] for b in bins)
    ece = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total
    return {"ece": ece, "bins": bins}
