"""What a diagnosis says of itself: data, model, options, and what they do to the answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from daptkit.diagnoseconfig import SHARED, DiagnoseOptions
from daptkit.recipes.diagnosis_inputs import Sites
from daptkit.report.provenance import options_shown
from daptkit.shift import ShiftDiagnosis

FEW_IMAGES = 100
"""Images of a site below which the diagnosis says that there are few."""


def caveats(sites: Sites) -> list[str]:
    """Return what the backbone and the number of images do to the answers."""
    said = []
    if not sites.trained:
        said.append(
            "The backbone has random weights: it sees edges and textures, and may overlook what"
            " matters to a trained one. Give --pretrained-path, --pretrained or --init-from."
        )
    if sites.by == "adapted":
        said.append(
            "The adapted model was trained to make the sites look alike: the tests say what it has"
            " left of the shift, not what there was. --run-model source-only asks for that."
        )
    if sites.config.init_from:
        said.append(
            "If the model of --init-from was trained on these source images, they look different to"
            " it from any unseen ones; diagnose with source images that it has not seen."
        )
    for name, site in (("source", sites.source), ("target", sites.target)):
        if len(site.rows) < FEW_IMAGES:
            said.append(f"The {name} has {len(site.rows)} images only: figures are rough.")
    said += [
        f"{number} patients are in {where} at once: the tests take them for different ones."
        for where, number in sites.prepared.overlaps.items()
    ]
    accuracy = source_accuracy(sites)
    chance = float(np.bincount(sites.labels).max() / len(sites.labels))
    if accuracy <= chance + 0.02:
        who, other = ("heads are", "backbone")
        if sites.by != "heads":
            who, other = (f"{sites.by} model is", "run")
        said.append(
            f"The {who} right on {100 * accuracy:.0f}% of held-out source images, no more than"
            f" naming the commonest class ({100 * chance:.0f}%): what is said of classes is"
            f" worth nothing. Try another {other}."
        )
    return said


def source_accuracy(sites: Sites) -> float:
    """Return how many held-out source images heads or model are right on, in [0, 1]."""
    return float((sites.predicted == sites.labels).mean())


def with_names(diagnosis: ShiftDiagnosis, sites: Sites) -> dict[str, Any]:
    """Return the diagnosis with class names at its priors; caveats are listed elsewhere."""
    found = diagnosis.to_json()
    del found["caveats"], found["stages"]
    found["source_prior"] = dict(zip(sites.classes, found["source_prior"], strict=True))
    if found["target_prior"] is not None:
        for key in ("estimate", "low", "high"):
            found["target_prior"][key] = dict(
                zip(sites.classes, found["target_prior"][key], strict=True)
            )
    return found


def data_facts(sites: Sites) -> dict[str, Any]:
    """Return sizes, classes, patients and fingerprints of both sites."""
    facts: dict[str, Any] = {"classes": list(sites.classes)}
    for name, site in (("source", sites.source), ("target", sites.target)):
        facts[name] = {
            "images": len(site.rows),
            "of": len(site.domain),
            "tested": len(site.tested),
            "patients": len(np.unique(site.groups)),
            "patients_known": site.table.patients_known,
            "sha256": sites.prepared.fingerprints[name],
            "skipped_unreadable": sum(d == name for d, _, _ in sites.prepared.skipped),
        }
    facts["patient_overlaps"] = dict(sites.prepared.overlaps)
    return facts


def run_facts(sites: Sites, own: DiagnoseOptions) -> dict[str, Any]:
    """Return model and options; no path is among them."""
    weights = sites.prepared.network.weights
    shown = options_shown(sites.config)
    return {
        "model": shown["model"],
        "img_size": sites.prepared.model_config.img_size,
        "weights": None if weights is None else weights.sha256,
        "trained": sites.trained,
        "by": sites.by,
        "method": sites.config.method,
        "source_accuracy": source_accuracy(sites),
        "seed": sites.config.seed,
        "device": str(sites.device),
        "options": {
            **{name: shown[name] for name in SHARED if name in shown},
            **{k: v for k, v in asdict(own).items() if k in ("alpha", "permutations")},
        },
    }
