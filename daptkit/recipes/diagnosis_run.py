"""What a diagnosis of a finished run rests on: its images, seen by a model of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from daptkit.diagnoseconfig import FREE_WITH_RUN, DiagnoseOptions
from daptkit.errors import UsageError
from daptkit.recipes.diagnosis_inputs import MAX_IMAGES, Site, Sites
from daptkit.report.finished import check_run
from daptkit.report.restore import restore_model
from daptkit.run import RunFolder
from daptkit.shift.movedprior import drawn_patients
from daptkit.train.device import resolve_device
from daptkit.train.progress import Reporter


def check_run_options(shared: Mapping[str, Any], own: DiagnoseOptions) -> None:
    """Check what was given beside ``--run``, and that the run is finished.

    Args:
        shared: options of ``adapt`` that were given.
        own: the others.

    Raises:
        UsageError: an option that the run fixes. DataError: no finished run.
    """
    assert own.run is not None
    fixed = ", ".join("--" + n.replace("_", "-") for n in shared if n not in FREE_WITH_RUN)
    if fixed:
        raise UsageError(f"--run: the run '{own.run}' says what {fixed} is; leave it out.")
    check_run(RunFolder(own.run))


def read_run_sites(shared: Mapping[str, Any], own: DiagnoseOptions, reporter: Reporter) -> Sites:
    """Bring the images of a run back and pass them through its source-only or delivered model.

    The source's images are those that the run held out: the model has not learnt from them.

    Args:
        shared: ``cache``, ``trust``, ``device`` and ``workers``, where given.
        own: names the run and the model.
        reporter: where progress goes.

    Raises:
        DataError: no finished run, or its data or models are gone or were changed.
        UsageError: a method of the run is not installed.
    """
    assert own.run is not None
    delivered = own.run_model == "delivered"
    model = restore_model(RunFolder(own.run), reporter, delivered=delivered, **shared)
    reporter.line(f"the {model.name} model of the run says what it sees")
    data, passes, seed = model.prepared.data, model.passes, model.config.seed
    assert data.source.labels is not None
    rows_s = np.sort(data.val_rows)
    rows_s = rows_s[drawn_patients(data.source.groups[rows_s], MAX_IMAGES, seed)]
    places = np.searchsorted(passes.source_rows, rows_s)
    rows_t = data.target_rows
    return Sites(
        source=Site(
            domain=data.source,
            rows=rows_s,
            features=passes.source_features[places],
            logits=passes.source_logits[places],
            tested=np.arange(len(rows_s)),
        ),
        target=Site(
            domain=data.target,
            rows=rows_t,
            features=passes.target_features[rows_t],
            logits=passes.target_logits[rows_t],
            tested=drawn_patients(data.target.groups[rows_t], MAX_IMAGES, seed),
        ),
        labels=data.source.labels[rows_s],
        prepared=model.prepared,
        net=model.net,
        device=resolve_device(model.config.device),
        config=model.config,
        by=model.name,
        rule=model.rule,
    )
