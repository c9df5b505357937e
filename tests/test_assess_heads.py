"""Heads trained apart: none has seen the patient it is asked about, and what their votes say."""

from __future__ import annotations

import numpy as np
import pytest

from daptkit.assess import estimate_accuracy, sample_of
from daptkit.assess.accuracy.heads import HEADS, resampled_heads, unseen_heads
from daptkit.errors import DataError


def test_no_head_has_seen_the_patient() -> None:
    rng = np.random.default_rng(0)
    # Two nearly equal images a patient and labels that mean nothing: only memory could be right.
    patients = np.repeat(np.arange(60), 2)
    x = rng.normal(size=(60, 200))[patients] + 0.01 * rng.normal(size=(120, 200))
    y = (np.arange(60) % 2)[patients]
    apart = unseen_heads(x, y, x, source_groups=patients, target_groups=patients)
    assert apart is not None
    assert [heads.shape for heads in apart] == [(HEADS, 120)] * 2
    assert (apart[0] == y).mean() < 0.65
    leaked = unseen_heads(x, y, x)
    assert leaked is not None
    assert (leaked[0] == y).mean() > 0.7


def test_their_agreement_estimates_accuracy_and_is_doubted_where_it_failed_at_the_source() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 600)
    means = 1.2 * rng.normal(size=(3, 8))
    x, t = (means[y] + rng.normal(size=(600, 8)) for _ in range(2))
    heads = unseen_heads(x, y, t, seed=1)
    assert heads is not None
    posterior = np.full((600, 3), 1 / 3)
    sample = sample_of(posterior, y, posterior)
    found = {
        e.name: e
        for e in estimate_accuracy(
            sample, kind="none", source_heads=heads[0], target_heads=heads[1], n_bootstrap=20
        )
    }
    agreed = np.mean([(a == b).mean() for i, a in enumerate(heads[1]) for b in heads[1][:i]])
    assert found["gde"].estimated_accuracy["value"] == pytest.approx(agreed)
    right = (heads[0] == y).mean()
    over = np.mean([(a == b).mean() for i, a in enumerate(heads[0]) for b in heads[0][:i]]) - right
    assert over > 0.03
    assert found["gde"].reliability == "fails"
    assert f"agree {over:.2f} more often than they are right" in found["gde"].note


def test_a_source_of_one_class_has_no_heads() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    one, groups = np.zeros(20, np.int64), np.arange(20)
    rng = np.random.default_rng(0)
    assert resampled_heads(x, one, groups, (x,), rng) is None
    with pytest.raises(DataError, match="2 patients and 2 classes"):
        unseen_heads(x, one, x)
    # One image of the second class: most resamples are without it.
    one[0] = 1
    assert unseen_heads(x, one, x) is None
