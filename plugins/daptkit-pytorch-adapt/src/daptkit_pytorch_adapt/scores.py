"""Scores of pytorch-adapt that need no target label, each NaN where it would mislead or fail.

They are to be read beside others, never to choose by alone: every one of them takes something for
granted that label shift or a collapse of the model can break.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

with warnings.catch_warnings():  # of packages that it imports and nothing here uses
    warnings.simplefilter("ignore")
    # First, for its line on installations where pytorch-adapt cannot be imported.
    from pytorch_adapt.layers import SilhouetteScore
    from pytorch_adapt.validators import (
        ClassClusterValidator,
        ISTValidator,
        MMDValidator,
        NearestSourceValidator,
    )

    import daptkit_pytorch_adapt.layers  # noqa: F401

NAN = float("nan")
Domain = dict[str, torch.Tensor]


class Inputs(Protocol):
    """What the scores read of ``daptkit.assess.ScoreInputs``."""

    target_posterior: Any
    source_posterior: Any
    source_labels: Any
    source_features: Any
    target_features: Any


def mmd(inputs: Inputs) -> float:
    """Return minus the squared maximum mean discrepancy of the two sites' features.

    The quadratic form with one Gaussian kernel, its bandwidth the median squared distance within
    the source; the linear form is negative half the time. NaN where that median is 0, as for
    collapsed features. Fooled by class frequencies that differ.
    """
    validator = MMDValidator(mmd_kwargs={"mmd_type": "quadratic"})
    return _of_both(inputs, lambda s, t: validator(src_train=s, target_train=t))


def domain_information(inputs: Inputs) -> float:
    """Return what the nearest images by cosine tell of an image's site, in nats; less is better.

    I(site; features) of Shi and Sha (2012), ``ISTValidator``; it is not negated as the library's
    other validators are. Fooled by class frequencies that differ.
    """
    validator = ISTValidator()
    return _of_both(inputs, lambda s, t: float(validator(src_train=s, target_train=t)))


def class_clusters(inputs: Inputs) -> float:
    """Return how far k-means clusters of the target's features agree with its predicted classes.

    Adjusted mutual information, ``ClassClusterValidator``, the clusters started from the means of
    the predicted classes, since a random start depends on what ran before. NaN where a class is
    predicted for no image, whose centre the library would put at 0. Fooled by clusters with
    exchanged names.
    """
    found = len(np.unique(_predicted(inputs)))
    if inputs.target_features is None or found < inputs.target_posterior.shape[1]:
        return NAN
    validator = ClassClusterValidator(centroid_init="label_centers")
    return float(validator(target_train=_target(inputs)))


def nearest_source(inputs: Inputs) -> float:
    """Return how often the held-out source image with the most similar prediction is right.

    Mean over target images, ``NearestSourceValidator``. NaN where the last class is held out in no
    source image, for which the library raises, and where every prediction is the same class, which
    has nothing to be near to. Fooled by over-confidence.
    """
    source, target = _source(inputs), _target(inputs)
    last = inputs.source_posterior.shape[1] - 1
    if int(inputs.source_labels.max()) != last or len(np.unique(_predicted(inputs))) < 2:
        return NAN
    return float(NearestSourceValidator()(src_val=source, target_train=target))


def silhouette(inputs: Inputs) -> float:
    """Return how well the predicted classes of the target are apart in its features, in [-1, 1].

    ``SilhouetteScore``. NaN where one class is predicted alone, or a class for each image, where
    the library raises. Fooled by clusters with exchanged names.
    """
    predicted = _predicted(inputs)
    if inputs.target_features is None or not 1 < len(np.unique(predicted)) < len(predicted):
        return NAN
    return float(SilhouetteScore()(_tensor(inputs.target_features), torch.from_numpy(predicted)))


def _of_both(inputs: Inputs, score: Callable[[Domain, Domain], float]) -> float:
    if inputs.source_features is None or inputs.target_features is None:
        return NAN
    return score(_source(inputs), _target(inputs))


def _source(inputs: Inputs) -> Domain:
    labels = torch.tensor(np.asarray(inputs.source_labels))
    return _domain(inputs.source_posterior, inputs.source_features, 0) | {"labels": labels}


def _target(inputs: Inputs) -> Domain:
    return _domain(inputs.target_posterior, inputs.target_features, 1)


def _domain(posterior: Any, features: Any, domain: int) -> Domain:
    probabilities = _tensor(posterior)
    return {
        "preds": probabilities,
        "logits": probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(),
        "domain": torch.full((len(probabilities),), float(domain)),
        **({} if features is None else {"features": _tensor(features)}),
    }


def _tensor(values: Any) -> torch.Tensor:
    # A copy: the arrays are shared by all scores and may not be written to.
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def _predicted(inputs: Inputs) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(inputs.target_posterior.argmax(axis=1), dtype=np.int64)
