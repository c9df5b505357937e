"""Reliability curves against plain loops and against the expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from daptkit.assess.metrics import score
from daptkit.assess.reliability import reliability_curve


def test_reliability_curve_against_loops() -> None:
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet([0.7] * 3, size=200)
    posterior[0], posterior[1] = [1.0, 0.0, 0.0], [0.2, 0.6, 0.2]  # an edge belongs below it
    labels = rng.integers(0, 3, 200)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, y in zip(posterior.tolist(), labels.tolist(), strict=True):
        best = max(p)
        number = next(b for b in range(15) if best <= (b + 1) / 15)
        bins.setdefault(number, []).append((best, p.index(best) == y))
    found = reliability_curve(posterior, labels)
    assert [round(b["low"] * 15) for b in found["bins"]] == sorted(bins)
    ece = 0.0
    for b in found["bins"]:
        members = bins[round(b["low"] * 15)]
        confidence = sum(c for c, _ in members) / len(members)
        accuracy = sum(r for _, r in members) / len(members)
        assert b["high"] == pytest.approx(b["low"] + 1 / 15)
        assert (b["n"], b["accuracy"]) == (len(members), pytest.approx(accuracy))
        assert b["confidence"] == pytest.approx(confidence)
        ece += len(members) / 200 * abs(accuracy - confidence)
    assert found["ece"] == pytest.approx(ece)
    predicted = posterior.argmax(1)
    scored = score(
        posterior,
        labels,
        predicted,
        predicted,
        ("a", "b", "c"),
        groups=labels,
        patients_known=False,
        n_bootstrap=0,
    )
    assert found["ece"] == pytest.approx(scored["ece"]["value"])


@pytest.mark.parametrize(
    ("posterior", "labels"), [(np.zeros((0, 2)), []), (np.ones(3), [0, 0, 0]), ([[0.5, 0.5]], [])]
)
def test_reliability_curve_refuses_what_does_not_fit(posterior: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match="posterior has shape"):
        reliability_curve(posterior, labels)
