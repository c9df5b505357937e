"""Held-out logits of every source image, for calibration where few images are held out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from daptkit.run import RunFolder
from daptkit.shift.calibration import MIN_IMAGES_PER_CLASS
from daptkit.train.deliver import HeldOut, Passes
from daptkit.train.domains import Rows, TaskData
from daptkit.train.inference import as_numpy, forward_rows
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter

FOLDS = 5


def held_out(
    data: TaskData, passes: Passes, make_job: Callable[[TaskData, RunFolder], Job]
) -> HeldOut:
    """Return the logits that the prediction rule is fitted on.

    Those of the source's validation images, where every class has enough of them. Where not, and
    the trunk is frozen, the same training runs on each of five patient-grouped, stratified folds
    of all source images, and every image is predicted by the model that did not see it: heads on
    cached features cost seconds, and a calibration that rests on a handful of images is noise. A
    network that is fine-tuned as a whole is not trained five times; its calibration is simpler.

    Args:
        data: both domains.
        passes: logits of the delivered model.
        make_job: makes the job of one fold from its data and a scratch folder.
    """
    labels = data.source.labels
    assert labels is not None
    counts = np.bincount(labels[data.val_rows], minlength=data.task.num_classes)
    everything = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    folds = _folds(labels[everything], data.source.groups[everything])
    if counts.min() >= MIN_IMAGES_PER_CLASS or not data.from_trunk or folds < 2:
        return HeldOut(passes.val_logits, labels[data.val_rows], 1)
    logits = np.zeros((len(everything), data.task.num_classes))
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=0)
    parts = splitter.split(everything, labels[everything], data.source.groups[everything])
    for inside, outside in parts:
        fold = replace(data, train_rows=everything[inside], val_rows=everything[outside])
        with tempfile.TemporaryDirectory() as scratch:
            job = replace(
                make_job(fold, RunFolder(scratch)), reporter=SilentReporter(), events=False
            )
            Trainer(job).run()
        out, _ = forward_rows(job.net, data.source, everything[outside], precision=job.precision)
        logits[outside] = as_numpy(out)
    return HeldOut(logits, labels[everything], folds)


def _folds(labels: Rows, groups: Rows) -> int:
    """Return how many folds every class can be spread over, by patients, at most five."""
    patients = [len(np.unique(groups[labels == c])) for c in np.unique(labels)]
    return min(FOLDS, *patients)
