"""Held-out logits of the source, cross-fitted where few images are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from daptkit.run import RunFolder
from daptkit.shift.calibration import MIN_IMAGES_PER_CLASS
from daptkit.train.domains import Rows, TaskData, class_shares
from daptkit.train.inference import as_numpy
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter

FOLDS = 5

MakeJob = Callable[[TaskData, RunFolder | None], Job]


@dataclass(frozen=True)
class HeldOut:
    """Logits (N, K) of source images that the model behind each never saw, and their labels.

    ``folds`` is the number of models: 1 for the delivered one alone.
    """

    logits: npt.NDArray[np.float64]
    labels: Rows
    folds: int

    def rows(self, data: TaskData) -> Rows:
        """Return which rows of the source these are: all where they were cross-fitted."""
        if self.folds > 1:
            return np.sort(np.concatenate([data.train_rows, data.val_rows]))
        return data.val_rows


def held_out(data: TaskData, val_logits: npt.NDArray[np.float64], make_job: MakeJob) -> HeldOut:
    """Return the logits that the prediction rule is fitted on.

    Those of the source's validation images, where every class of the source has enough of them.
    Where not, and the trunk is frozen, the same training runs on each of up to five
    patient-grouped, stratified folds of all source images, and every image is predicted by the
    model that did not see it: heads on cached features cost seconds, and a calibration that rests
    on a handful of images is noise. A network that is fine-tuned as a whole is not trained five
    times; its calibration is simpler.

    Args:
        data: both domains.
        val_logits: (N, K) of the validation images, by the delivered model.
        make_job: makes the job of one fold from its data; without a folder, nothing is written.
    """
    labels = data.source.labels
    assert labels is not None
    everything = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    counts = [(labels[data.val_rows] == c).sum() for c in np.unique(labels[everything])]
    enough = min(counts) >= MIN_IMAGES_PER_CLASS
    parts = [] if enough or not data.from_trunk else _folds(data, everything, labels)
    if not parts:
        return HeldOut(val_logits, labels[data.val_rows], 1)
    logits = np.zeros((len(everything), data.task.num_classes))
    for fold in parts:
        job = replace(make_job(fold, None), reporter=SilentReporter(), events=False)
        out, _ = Trainer(job).run().passes.of("source_val")
        logits[np.searchsorted(everything, fold.val_rows)] = as_numpy(out)
    return HeldOut(logits, labels[everything], len(parts))


def _folds(data: TaskData, everything: Rows, labels: Rows) -> list[TaskData]:
    """Return the folds' data; none where some class cannot be in the training part of each."""
    y, groups = labels[everything], data.source.groups[everything]
    patients = [len(np.unique(groups[y == c])) for c in np.unique(y)]
    folds = min(FOLDS, *patients)
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=0)
    parts = [
        _fold(data, everything[inside], everything[outside], labels)
        for inside, outside in splitter.split(everything, y, groups)
    ]
    complete = all(len(part.val_rows) and set(y) == set(labels[part.train_rows]) for part in parts)
    return parts if complete else []


def _fold(data: TaskData, inside: Rows, outside: Rows, labels: Rows) -> TaskData:
    task = replace(
        data.task,
        n_source=len(inside),
        source_prior=class_shares(labels[inside], data.task.num_classes),
    )
    return replace(data, train_rows=inside, val_rows=outside, task=task)
