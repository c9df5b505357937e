"""The scores against plain loops and scikit-learn, and where they are not defined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

from daptkit.assess.scores import ScoreInputs, score_inputs
from daptkit_pytorch_adapt import scores
from daptkit_pytorch_adapt.plugin import daptkit_scores

ALL = (
    scores.mmd,
    scores.domain_information,
    scores.class_clusters,
    scores.nearest_source,
    scores.silhouette,
)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def made(*, shift: float = 0.5, spread: float = 1.0, **changes: Any) -> ScoreInputs:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(3, 4))
    labels, hidden = rng.integers(0, 3, 30), rng.integers(0, 3, 24)
    x_s = centres[labels] + spread * rng.normal(size=(30, 4))
    x_t = centres[hidden] + shift + spread * rng.normal(size=(24, 4))
    values: dict[str, Any] = {
        "target_posterior": softmax(x_t @ centres.T / 4),
        "source_posterior": softmax(x_s @ centres.T / 4),
        "source_labels": labels,
        "source_features": x_s,
        "target_features": x_t,
        **changes,
    }
    return score_inputs(**values)


def test_mmd_is_the_loop() -> None:
    inputs = made()
    s, t = inputs.source_features, inputs.target_features
    assert s is not None
    assert t is not None

    def squared(a: np.ndarray, b: np.ndarray) -> list[float]:
        return [float(((x - y) ** 2).sum()) for x in a for y in b]

    def mean(distances: list[float], n: int) -> float:
        return (sum(math.exp(-d / median) for d in distances) - n) / (n * (n - 1))

    # As torch does it: the lower of the two middle ones.
    median = sorted(squared(s, s))[(len(s) ** 2 - 1) // 2]
    between = squared(s, t)
    cross = sum(math.exp(-d / median) for d in between) / len(between)
    wanted = mean(squared(s, s), len(s)) + mean(squared(t, t), len(t)) - 2 * cross
    assert scores.mmd(inputs) == pytest.approx(-wanted, rel=1e-3)


def test_domain_information_is_the_loop() -> None:
    inputs = made()
    s, t = inputs.source_features, inputs.target_features
    assert s is not None
    assert t is not None
    x = np.concatenate([s, t])
    site = np.array([0.0] * len(s) + [1.0] * len(t))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        near = [math.exp(float(x[i] @ x[j])) for j in others]
        shares.append(sum(w * site[j] for w, j in zip(near, others, strict=True)) / sum(near))

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    wanted = entropy(sum(shares) / len(shares)) - sum(map(entropy, shares)) / len(shares)
    assert scores.domain_information(inputs) == pytest.approx(wanted, abs=1e-5)
    assert wanted > 0
    assert scores.domain_information(made(shift=9.0)) > 3 * wanted


def test_clusters_and_silhouette_are_those_of_scikit_learn() -> None:
    inputs = made(spread=2.0)
    x, predicted = inputs.target_features, inputs.target_predicted
    assert x is not None
    start = np.stack([x[predicted == k].mean(axis=0) for k in range(3)])
    found = KMeans(3, init=start, n_init=1).fit(x).labels_
    wanted = adjusted_mutual_info_score(predicted, found)
    np.random.seed(1)  # noqa: NPY002 - what it shall not depend on
    first = scores.class_clusters(inputs)
    np.random.seed(2)  # noqa: NPY002
    assert scores.class_clusters(inputs) == first == pytest.approx(wanted)
    assert 0 < wanted < 1
    assert scores.silhouette(inputs) == pytest.approx(silhouette_score(x, predicted), abs=1e-5)


def test_nearest_source_is_the_loop() -> None:
    inputs = made(spread=2.5)
    right = inputs.source_posterior.argmax(axis=1) == inputs.source_labels
    unit = [
        p / np.linalg.norm(p, axis=1, keepdims=True)
        for p in (inputs.source_posterior, inputs.target_posterior)
    ]
    nearest = [max(range(30), key=lambda j, r=row: float(r @ unit[0][j])) for row in unit[1]]
    wanted = sum(bool(right[j]) for j in nearest) / len(nearest)
    assert 0.3 < wanted < 1
    assert scores.nearest_source(inputs) == pytest.approx(wanted)


def test_a_collapsed_model_has_no_score_to_be_proud_of() -> None:
    """SND gives it its best; here what rests on predictions is not defined."""
    collapsed = made(target_posterior=np.tile([0.98, 0.01, 0.01], (24, 1)))
    for score in (scores.class_clusters, scores.nearest_source, scores.silhouette):
        assert math.isnan(score(collapsed))
    flat = made(source_features=np.ones((30, 4)), target_features=np.ones((24, 4)))
    assert math.isnan(scores.mmd(flat))
    assert scores.domain_information(flat) == pytest.approx(0.0, abs=1e-2)


def test_what_is_missing_is_not_defined() -> None:
    bare = made(source_features=None, target_features=None)
    for score in ALL:
        assert math.isnan(score(bare)) == (score is not scores.nearest_source)
    assert math.isnan(scores.nearest_source(made(source_labels=np.zeros(30, dtype=np.int64))))


def test_inputs_that_cannot_be_written_to_stay_as_they_are() -> None:
    inputs = made()
    for array in (inputs.target_posterior, inputs.source_features, inputs.target_features):
        assert array is not None
        array.flags.writeable = False
    before = inputs.target_posterior.copy()
    assert all(isinstance(score(inputs), float) for score in ALL)
    assert np.array_equal(inputs.target_posterior, before)


def test_specifications() -> None:
    specs = {spec.factory.partition(":")[2]: spec for spec in daptkit_scores()}
    assert specs.keys() == {score.__name__ for score in ALL}
    assert [n for n, spec in specs.items() if not spec.higher_is_better] == ["domain_information"]
