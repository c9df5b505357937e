"""The paired difference of two models, by plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from daptkit.assess.intervals import resample_counts
from daptkit.assess.paired import lost_balanced_accuracy


def drawn(n: int = 60, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3], n)  # class 2 is absent
    before = np.where(rng.random(n) < 0.8, labels, rng.integers(0, 4, n))
    after = np.where(rng.random(n) < 0.7, before, rng.integers(0, 4, n))
    return labels, before, after, np.repeat(np.arange(n // 3), 3)


def balanced(labels: list[int], predicted: list[int]) -> float:
    recalls = []
    for c in sorted(set(labels)):
        hits = [p == c for p, y in zip(predicted, labels, strict=True) if y == c]
        recalls.append(sum(hits) / len(hits))
    return sum(recalls) / len(recalls)


def test_value_and_interval_by_loops() -> None:
    labels, before, after, groups = drawn()
    found = lost_balanced_accuracy(
        labels, before, after, groups=groups, patients_known=True, n_bootstrap=50, seed=3
    )
    assert found["value"] == pytest.approx(
        balanced([*labels], [*before]) - balanced([*labels], [*after])
    )
    draws = []
    for block in resample_counts(20, 60, 50, 3):
        for counts in block.astype(int):
            rows = [i for i in range(60) for _ in range(counts[groups[i]])]
            y = [labels[i] for i in rows]
            one, other = ([model[i] for i in rows] for model in (before, after))
            draws.append(balanced(y, one) - balanced(y, other))
    ends = np.percentile(draws, [2.5, 97.5]).tolist()
    assert [found["low"], found["high"]] == pytest.approx(ends)
    assert (found["n"], found["interval"]) == (60, "patient")
    by_image = lost_balanced_accuracy(labels, before, after, groups=groups, patients_known=False)
    assert by_image["interval"] == "image" and by_image["value"] == found["value"]
    assert by_image["low"] != found["low"]


def test_equal_models_have_lost_nothing_for_sure() -> None:
    """Two separate intervals would leave room; the paired one does not."""
    labels, before, _, groups = drawn()
    found = lost_balanced_accuracy(labels, before, before, groups=groups, patients_known=True)
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_one_patient_gives_no_interval_and_no_image_is_an_error() -> None:
    labels, before, after, groups = drawn()
    found = lost_balanced_accuracy(labels, before, after, groups=groups * 0, patients_known=True)
    assert found["value"] is not None and found["low"] is None and found["high"] is None
    none = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="no images"):
        lost_balanced_accuracy(none, none, none, groups=none, patients_known=False)
