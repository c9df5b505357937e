"""Which shift is it, and which method fits: a diagnosis of two sites before any adapting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import daptkit
from daptkit.assess import bound_panel
from daptkit.config import AdaptConfig, resolve_config
from daptkit.data import read_audit_labels
from daptkit.diagnoseconfig import FIXED, SHARED, DiagnoseOptions
from daptkit.errors import UsageError, did_you_mean
from daptkit.host import PluginStatus, list_plugins
from daptkit.plugin import build_options
from daptkit.recipes.diagnosis_accuracy import accuracy
from daptkit.recipes.diagnosis_facts import caveats, data_facts, run_facts, with_names
from daptkit.recipes.diagnosis_inputs import (
    Sites,
    drop_colours,
    measure_stages,
    positions,
    read_sites,
    site_statistics,
)
from daptkit.recipes.diagnosis_looks import looks, to_recommend
from daptkit.recipes.diagnosis_run import check_run_options, read_run_sites
from daptkit.report.diagnosis import summary_text, write_diagnosis
from daptkit.report.diagnosis.words import FORMAT
from daptkit.run import claim_folder
from daptkit.shift import (
    Recommendation,
    ShiftDiagnosis,
    compare_appearance,
    concept_test,
    diagnose_shift,
    recommend_methods,
)
from daptkit.train.domains import Rows
from daptkit.train.progress import Reporter, SilentReporter

TRUSTED_KINDS = ("label", "both")


@dataclass(frozen=True, kw_only=True)
class DiagnoseResult:
    """What a diagnosis found.

    Args:
        kind: ``"none"``, ``"covariate"``, ``"label"``, ``"both"`` or ``"unclear"``.
        methods: recommended argument of ``-m``.
        summary: text for the terminal.
        data: every figure, plain values; what ``diagnosis.json`` holds.
        page: the page written, or ``None``.
    """

    kind: str
    methods: str
    summary: str
    data: dict[str, Any]
    page: Path | None


def diagnose(*, reporter: Reporter | None = None, **values: Any) -> DiagnoseResult:
    """Say which shift there is between two sites and which installed method is for it.

    Features are those of a frozen backbone, logits those of linear heads on them, cross-fitted by
    patient; with ``run`` both are of a model of that finished run, on its images. No target label
    is read, but those of ``target_labels``, which are used for what is under the key
    ``"target_labels"`` of the result and for nothing else.

    Args:
        reporter: where progress goes; nowhere by default.
        **values: ``source``, ``target`` and the further fields of
            :data:`daptkit.diagnoseconfig.SHARED`, as :func:`daptkit.adapt` takes them, and those of
            :class:`daptkit.diagnoseconfig.DiagnoseOptions`: ``run``, ``run_model``,
            ``target_labels``, ``alpha``, ``permutations``, ``out``.

    Returns:
        The kind of shift, the recommendation, a summary, and every figure behind them.

    Raises:
        UsageError: options that cannot work. DataError: data or a run that cannot be used.
        DaptkitError: the page cannot be written.

    >>> daptkit.diagnose(source="site_a", target="site_b").kind  # doctest: +SKIP
    'covariate'
    """
    began = time.monotonic()
    report = reporter or SilentReporter()
    shared, own = split_options(values)
    if own.run is None:
        config = resolve(shared)
    else:
        check_run_options(shared, own)
    if own.out is not None:
        claim_folder(Path(own.out))
    if own.run is None:
        sites = read_sites(config, report)
    else:
        sites = read_run_sites(shared, own, report)
    audited = _audited(own, sites)
    report.line(f"three tests, {own.permutations} permutations of patients each")
    diagnosis = _diagnosis(sites, own)
    report.line("stages of the backbone, estimates of accuracy, installed methods")
    methods = _methods()
    seen = looks(sites, diagnosis, methods)
    fitting = to_recommend(methods, seen["properties"])
    data = {
        "format": FORMAT,
        "daptkit": daptkit.__version__,
        "kind": diagnosis.kind,
        **seen,
        "diagnosis": with_names(diagnosis, sites),
        "recommendation": _recommendation(diagnosis, fitting).to_json(),
        "stages": measure_stages(sites),
        **accuracy(sites, diagnosis),
        "caveats": [*caveats(sites), *diagnosis.caveats],
        "data": data_facts(sites),
        "run": run_facts(sites, own),
        "target_labels": None if audited is None else _audit(sites, diagnosis, *audited),
    }
    data["run"]["seconds"] = round(time.monotonic() - began, 1)
    page = None if own.out is None else write_diagnosis(Path(own.out), data)
    return DiagnoseResult(
        kind=diagnosis.kind,
        methods=data["recommendation"]["methods"],
        summary=summary_text(data),
        data=data,
        page=page,
    )


def split_options(values: Mapping[str, Any]) -> tuple[dict[str, Any], DiagnoseOptions]:
    """Return the options of ``adapt`` that were given, and those of a diagnosis alone, checked.

    Raises:
        UsageError: an unknown name, or a value of a wrong type or out of bounds.
    """
    own_names = list(DiagnoseOptions.__dataclass_fields__)
    for name in values:
        if name not in SHARED and name not in own_names:
            hint = did_you_mean(name, [*SHARED, *own_names])
            raise UsageError(f"diagnose has no option {name!r}.{hint}")
    own = build_options(DiagnoseOptions, {n: v for n, v in values.items() if n in own_names})
    if own.run is None and "run_model" in values:
        raise UsageError("--run-model chooses between the models of a --run; give that too.")
    return {name: value for name, value in values.items() if name in SHARED}, own


def resolve(shared: Mapping[str, Any]) -> AdaptConfig:
    """Return the configuration behind the options on data and model, checked.

    Raises:
        UsageError: a value of a wrong type or out of bounds, or no source or target.
    """
    for name in ("source", "target"):
        if not shared.get(name):
            raise UsageError(
                f"--{name} is missing; 'daptkit diagnose --help' shows how to give it. A finished"
                " run is diagnosed by --run."
            )
    given = dict(shared)
    if isinstance(given["source"], (str, Path)):
        given["source"] = (str(given["source"]),)
    # A diagnosis without --out writes nothing; the configuration of a run needs a name.
    return resolve_config({**given, **FIXED, "out": "-"}, None, lambda _: {})


def _diagnosis(sites: Sites, own: DiagnoseOptions) -> ShiftDiagnosis:
    source, target = sites.source, sites.target
    seed = sites.config.seed
    diagnosis = diagnose_shift(
        source.of_tested(source.features),
        source.of_tested(source.logits),
        source.of_tested(sites.labels),
        target.of_tested(target.features),
        target.of_tested(target.logits),
        alpha=own.alpha,
        permutations=own.permutations,
        seed=seed,
        source_groups=source.given_groups,
        target_groups=target.given_groups,
    )
    (g_s, of_s), (g_t, of_t) = (site_statistics(site, seed) for site in (source, target))
    drop_colours(of_s, of_t)
    appearance = compare_appearance(of_s, of_t, source_groups=g_s, target_groups=g_t, seed=seed)
    return replace(diagnosis, appearance=appearance)


def _methods() -> list[PluginStatus]:
    """Return the methods that are installed and not broken."""
    return [p for p in list_plugins() if p.kind == "method" and p.status == "ok"]


def _recommendation(diagnosis: ShiftDiagnosis, methods: Sequence[PluginStatus]) -> Recommendation:
    """Choose among the methods by what they say they address."""
    return recommend_methods(
        diagnosis,
        {p.name: frozenset(p.addresses) for p in methods},
        {p.name: frozenset(p.roles) for p in methods},
        risks={p.name: frozenset(p.risks) for p in methods},
    )


def _audited(own: DiagnoseOptions, sites: Sites) -> tuple[Rows, Rows] | None:
    """Return positions among the target's images and classes of those that the user labelled."""
    if own.target_labels is None:
        return None
    rows, labels = read_audit_labels(
        Path(own.target_labels), sites.target.table, sites.target.rows, sites.classes
    )
    return positions(sites.target, rows), labels


def _audit(sites: Sites, diagnosis: ShiftDiagnosis, places: Rows, labels: Rows) -> dict[str, Any]:
    """Test on labelled target images what no other figure can: whether a label means the same."""
    source, target, seed = sites.source, sites.target, sites.config.seed
    estimate = diagnosis.target_prior
    believed = estimate is not None and estimate.trusted and diagnosis.kind in TRUSTED_KINDS
    groups = target.groups[places]
    found = concept_test(
        source.logits,
        sites.labels,
        target.logits[places],
        labels,
        target_prior=estimate.estimate if believed and estimate is not None else None,
        source_groups=source.groups,
        target_groups=groups,
        seed=seed,
    )
    bound = bound_panel(
        source.of_tested(source.features),
        source.of_tested(sites.labels),
        source.of_tested(sites.predicted),
        target.of_tested(target.features),
        labelled_features=target.features[places],
        labelled_classes=labels,
        labelled_groups=groups,
        source_groups=source.tested_groups,
        target_groups=target.tested_groups,
        seed=seed,
    )
    counts = np.bincount(labels, minlength=len(sites.classes)).tolist()
    return {
        "concept": found.to_json(),
        "prior_used": "estimated" if believed else "source",
        "bound": bound.to_json(),
        "counts": dict(zip(sites.classes, counts, strict=True)),
    }
