"""Cross-fitted logits: every image is predicted by a model that has not seen its patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix

MAX_COMPONENTS = 64
REGULARISATION = 0.1
ABSENT_LOG_POSTERIOR = float(np.log(1e-4))
"""Log posterior given to a class that the fold's training part lacks."""

Predictor = Callable[[npt.ArrayLike], FloatArray]


def cross_fitted_logits(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    num_classes: int | None = None,
) -> tuple[FloatArray, Predictor]:
    """Return out-of-fold logits (N, K) and a predictor of logits for further features.

    Features are standardised and projected on up to 64 principal components (labels play no
    part), then one L2 multinomial logistic regression (C = 0.1) a fold is fitted on the other
    folds. Folds are stratified by class and never split a group. The predictor averages the folds'
    log posteriors, so that it is about as confident as the out-of-fold logits.

    Args:
        features: (N, D), from a model that was not trained on these labels.
        labels: (N,) class indices.
        groups: (N,) patients; one per image if ``None``.
        folds: at least 2; fewer are used when there are fewer groups.
        seed: of folds and projection.
        num_classes: K, by default the largest label + 1.

    Reference: Chernozhukov et al. 2018, arXiv:1608.00060 (cross-fitting).

    Raises:
        DataError: arrays of wrong shape, non-finite features, fewer than 2 groups or classes.
    """
    x = as_matrix(features, "features")
    n = len(x)
    k = int(np.max(labels)) + 1 if num_classes is None else num_classes
    y = as_labels(labels, n, k)
    g = as_groups(groups, n)
    splits = min(folds, len(np.unique(g)), int(np.bincount(y).max()))
    if splits < 2 or len(np.unique(y)) < 2:
        raise DataError(
            "cross-fitting needs at least 2 patients and 2 classes in the source; add images."
        )
    project = projection(x, seed)
    z = project(x)
    out = np.zeros((n, k))
    models: list[FoldHead] = []
    for train, test in split_patients(y, g, splits, seed):
        model = FoldHead(z[train], y[train], k)
        out[test] = model.log_posterior(z[test])
        models.append(model)

    def predict(further: npt.ArrayLike) -> FloatArray:
        projected = project(as_matrix(further, "features"))
        mean = np.mean([model.log_posterior(projected) for model in models], axis=0)
        return np.asarray(log_softmax(mean, axis=1), dtype=np.float64)

    return out, predict


class FoldHead:
    """Multinomial logistic regression over the classes that its training part has."""

    def __init__(self, x: FloatArray, y: IntArray, num_classes: int) -> None:
        self.present = np.unique(y)
        self.num_classes = num_classes
        self.model: LogisticRegression | None = None
        if len(self.present) > 1:
            self.model = LogisticRegression(C=REGULARISATION, max_iter=500)
            with warnings.catch_warnings():
                # A fit stopped early is still a fixed predictor, and calibration follows.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model.fit(x, y)

    def log_posterior(self, x: FloatArray) -> FloatArray:
        """Return log posteriors (N, K) of projected features (N, F)."""
        out = np.full((len(x), self.num_classes), ABSENT_LOG_POSTERIOR)
        if self.model is None:
            out[:, self.present] = 0.0
        else:
            with np.errstate(divide="ignore"):  # a saturated probability is bounded below
                out[:, self.present] = np.maximum(self.model.predict_log_proba(x), -30.0)
        return np.asarray(log_softmax(out, axis=1), dtype=np.float64)


def split_patients(
    y: IntArray, g: IntArray, splits: int, seed: int
) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Return training and test rows of each fold, stratified by class, no group split."""
    folder = StratifiedGroupKFold(n_splits=splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is absent from some; FoldHead copes with that.
        warnings.simplefilter("ignore", UserWarning)
        pairs = list(folder.split(np.zeros((len(y), 1)), y, g))
    return [(train, test) for train, test in pairs if len(train) and len(test)]


def projection(x: FloatArray, seed: int) -> Callable[[FloatArray], FloatArray]:
    """Return standardisation followed by principal components scaled to a common size."""
    mean = x.mean(axis=0)
    scale = x.std(axis=0)
    # A constant channel says nothing; dividing by its rounding error would make it shout.
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-12), scale, np.inf)
    components = min(MAX_COMPONENTS, x.shape[1], len(x) - 1)
    standardised = (x - mean) / scale
    if components < x.shape[1]:
        pca = PCA(n_components=components, random_state=seed).fit(standardised)
        basis = np.asarray(pca.components_, dtype=np.float64)
    else:
        basis = np.eye(x.shape[1])
    size = max(float((standardised @ basis.T).std()), 1e-12)

    def project(further: FloatArray) -> FloatArray:
        return np.asarray(((further - mean) / scale) @ basis.T / size, dtype=np.float64)

    return project
