"""Estimators, weights, bootstrap and trust against loops, known priors and hostile samples."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from daptkit.errors import DataError, UsageError
from daptkit.shift import (
    TrustLimits,
    bbse_prior,
    conditional_confusion,
    effective_sample_size,
    em_prior,
    estimate_prior,
    hard_predictions,
    importance_weights,
    predicted_marginal,
    rlls_prior,
    smallest_singular_value,
)
from daptkit.shift.bootstrap import group_counts
from daptkit.shift.trust import representation

A = np.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.3], [0.1, 0.2, 0.6]])
P = np.array([0.5, 0.3, 0.2])
Q = np.array([0.1, 0.3, 0.6])
MEANS = np.array([[2.0, 0.0], [0.0, 2.0], [-1.5, -1.5]])


def draw(n, prior, seed, means=MEANS, offset=0.0, bias=(0.0, 0.0, 0.0)):
    """Over-confident logits of Gaussians under the prior P, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=prior)
    x = means[y] + rng.normal(size=(n, 2)) + offset
    z = np.log(P) - 0.5 * ((x[:, None] - means) ** 2).sum(-1)
    return 2.0 * z + np.array(bias), y


def test_confusion_is_the_formula():
    rng = np.random.default_rng(0)
    f = rng.dirichlet(np.ones(3), 40)
    y = rng.integers(0, 3, 40)
    w = rng.uniform(0, 2, 40)
    for c in (0.0, 2.5):
        got = conditional_confusion(f, y, w, pseudo_count=c)
        for i, j in itertools.product(range(3), range(3)):
            top = sum(w[n] * f[n, i] for n in range(40) if y[n] == j) + c / 3
            assert got[i, j] == pytest.approx(top / (w[y == j].sum() + c), abs=1e-12)
    hard = hard_predictions(f)
    assert (hard.argmax(1) == f.argmax(1)).all()
    assert (hard.sum(1) == 1).all()
    mu = predicted_marginal(f, w)
    assert mu[1] == pytest.approx(sum(w[n] * f[n, 1] for n in range(40)) / w.sum())


def test_integer_weights_are_repeated_rows():
    rng = np.random.default_rng(0)
    f, y, w = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    repeated = conditional_confusion(np.repeat(f, w, axis=0), np.repeat(y, w))
    assert conditional_confusion(f, y, w) == pytest.approx(repeated, abs=1e-12)
    log_p = np.log(f)
    assert em_prior(log_p, P, w) == pytest.approx(em_prior(np.repeat(log_p, w, axis=0), P))


def test_class_without_images_has_a_uniform_column():
    got = conditional_confusion(np.full((4, 3), 1 / 3), [0, 0, 1, 1])
    assert got[:, 2] == pytest.approx([1 / 3] * 3)
    assert np.isfinite(got).all()


def test_bbse_and_rlls_recover_a_representable_prior():
    assert bbse_prior(A, A @ Q) == pytest.approx(Q, abs=1e-6)
    assert rlls_prior(A, A @ Q, P, 10**7, alpha=1e-6) == pytest.approx(Q, abs=1e-4)


def test_bbse_is_the_best_point_of_the_simplex():
    mu = np.array([0.0, 0.05, 0.95])  # the inverse would give a negative prior
    assert (np.linalg.solve(A, mu) < 0).any()
    got = bbse_prior(A, mu)
    grid = [
        (a, b, 1 - a - b)
        for a in np.linspace(0, 1, 101)
        for b in np.linspace(0, 1, 101)
        if a + b <= 1 + 1e-12
    ]
    best = min(sum((A @ np.array(q) - mu) ** 2) for q in grid)
    assert sum((A @ got - mu) ** 2) <= best + 1e-9
    assert (got >= 0).all()
    assert got.sum() == pytest.approx(1.0)


def test_rlls_minimises_its_objective():
    n, alpha = 300, 0.05
    mu = A @ Q + np.array([0.02, -0.01, -0.01])
    log_term = 2 * np.log(6 / 0.05)
    rho = 3 * (log_term / (3 * n) + np.sqrt(log_term / n))

    def objective(q):
        theta = q / P - 1
        residual = (A * P) @ theta - (mu - A @ P)
        return np.sqrt((residual**2).sum()) + alpha * rho * np.sqrt((theta**2).sum())

    got = rlls_prior(A, mu, P, n, alpha=alpha)
    rng = np.random.default_rng(0)
    tries = [rng.dirichlet(np.ones(3)) for _ in range(3000)]
    tries += [0.99 * got + 0.01 * q for q in tries[:500]]
    assert objective(got) <= min(objective(q) for q in tries) + 1e-6
    strong = rlls_prior(A, mu, P, n, alpha=100.0)
    assert strong == pytest.approx(P, abs=1e-3)


def test_em_is_the_formula():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 50)
    q = 0.999 * P + 0.001 / 3
    for _ in range(7):
        total = np.zeros(3)
        for row in p:
            mass = [row[k] * q[k] / P[k] for k in range(3)]
            total += np.array(mass) / sum(mass)
        q = total / 50
    assert em_prior(np.log(p), P, max_iterations=7, tolerance=0.0) == pytest.approx(q, abs=1e-12)


def test_em_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 80)

    def likelihood(q):
        return np.log((p / P) @ q).mean()

    got = em_prior(np.log(p), P)
    assert all(likelihood(got) >= likelihood(rng.dirichlet(np.ones(3))) for _ in range(2000))
    assert em_prior(np.log(p), P, start=[0.98, 0.01, 0.01]) == pytest.approx(got, abs=1e-4)


def test_saturated_and_impossible_posteriors_stay_finite():
    log_p = np.where(np.eye(3)[np.arange(30) % 2] > 0, 0.0, -1e6)
    got = em_prior(log_p, [0.5, 0.5, 0.0])
    assert np.isfinite(got).all()
    assert got[:2] == pytest.approx([0.5, 0.5], abs=1e-3)


def test_singular_confusion_gives_a_prior_and_no_exception():
    singular = np.full((3, 3), 1 / 3)
    assert smallest_singular_value(singular) == pytest.approx(0.0, abs=1e-12)
    for q in (bbse_prior(singular, P), rlls_prior(singular, P, P, 100)):
        assert np.isfinite(q).all()
        assert q.sum() == pytest.approx(1.0)


def test_importance_weights_are_the_formula():
    w = importance_weights(Q, P, shrink=0.25, max_weight=100.0)
    raw = [1 + 0.75 * (q / p - 1) for q, p in zip(Q, P, strict=True)]
    assert w == pytest.approx(raw, abs=1e-9)  # of mean 1 already
    assert importance_weights(Q, P, shrink=1.0) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("cap", [1.0, 1.5, 2.0, 10.0])
@pytest.mark.parametrize("q", [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.01, 0.49, 0.5)])
def test_capped_weights_keep_mean_one(q, cap):
    p = np.array([0.9, 0.08, 0.02])
    w = importance_weights(q, p, max_weight=cap)
    assert w @ p == pytest.approx(1.0, abs=1e-9)
    assert (w <= cap + 1e-9).all()
    assert (w >= 0).all()


def test_class_absent_from_the_source_gets_weight_one():
    w = importance_weights([0.2, 0.3, 0.5], [0.5, 0.5, 0.0])
    assert w[2] == 1.0
    assert w[:2] @ [0.5, 0.5] == pytest.approx(1.0)


def test_effective_sample_size():
    assert effective_sample_size([2.0] * 7) == pytest.approx(7.0)
    assert effective_sample_size([3.0, 1.0]) == pytest.approx(16 / 10)
    assert effective_sample_size([0.0, 0.0]) == 0.0


@pytest.mark.parametrize("method", ["em", "bbse", "bbse-hard", "rlls"])
def test_known_prior_is_recovered(method):
    z, y = draw(4000, P, 0, bias=(0.5, -0.5, 0.0))
    t, _ = draw(4000, Q, 1, bias=(0.5, -0.5, 0.0))
    got = estimate_prior(z, y, t, method=method, bootstraps=30)
    assert np.abs(got.estimate - Q).sum() < 0.06
    assert got.trusted, got.reasons
    assert got.prior is not None
    assert (got.low <= got.estimate).all()
    assert (got.estimate <= got.high).all()
    assert got.weights == pytest.approx(Q / P, abs=0.1)
    assert got.ess == pytest.approx(4000 / (Q**2 / P).sum(), rel=0.1)


def test_em_uses_the_weighted_mean_posterior_as_source_prior():
    """A model trained under w = q / p: the estimate stays q, not q^2 / p."""
    w = Q / P
    z, y = draw(6000, P, 0)
    t, _ = draw(6000, Q, 1)
    shifted = np.log(w) * 2.0  # the model's log prior moves from P to Q
    got = estimate_prior(z + shifted, y, t + shifted, source_weights=w[y], bootstraps=0)
    assert np.abs(got.estimate - Q).sum() < 0.06
    assert got.weights == pytest.approx(Q / P, abs=0.15)
    wrong = estimate_prior(z + shifted, y, t + shifted, bootstraps=0)
    assert np.abs(wrong.estimate - Q).sum() < 0.06  # calibration absorbs it when biases are fitted


def test_rare_class_without_bias_fit_still_needs_the_weights():
    """Temperature only (24 images of a class): the weights must enter pi."""
    w = np.array([0.2, 1.0, 3.0])
    w /= w @ P
    prior = w * P
    z, y = draw(3000, P, 0)
    keep = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:24]]
    t, _ = draw(3000, Q, 1)
    z, t = z + 2 * np.log(prior / P), t + 2 * np.log(prior / P)
    z, y = z[keep], y[keep]
    # The rows of the rare class are too few; their weights make up for it.
    rows = w[y] * (P / (np.bincount(y) / len(y)))[y]
    right = estimate_prior(z, y, t, source_weights=rows, source_prior=P, bootstraps=0)
    assert right.calibration.kind == "temperature"
    assert np.abs(right.estimate - Q).sum() < 0.1
    wrong = estimate_prior(z, y, t, source_prior=P, bootstraps=0)
    assert np.abs(wrong.estimate - Q).sum() > np.abs(right.estimate - Q).sum() + 0.1


def test_pure_label_shift_is_trusted_at_200_images():
    trusted = 0
    for seed in range(10):
        z, y = draw(200, P, seed)
        t, _ = draw(200, Q, 100 + seed)
        trusted += estimate_prior(z, y, t, bootstraps=20).trusted
    assert trusted >= 9


def test_weak_classifier_and_shifted_features_abstain():
    weak = 0.25 * MEANS
    trusted = 0
    for seed in range(10):
        z, y = draw(400, P, seed, means=weak)
        t, _ = draw(400, P, 100 + seed, means=weak, offset=2.0)
        found = estimate_prior(z, y, t, bootstraps=20)
        trusted += found.trusted
        assert found.trusted or (found.prior is None and (found.weights == 1).all())
    assert trusted == 0


def test_strong_feature_shift_leaves_a_residual():
    z, y = draw(2000, P, 0)
    pure, _ = draw(2000, Q, 1)
    moved, _ = draw(2000, Q, 1, offset=np.array([1.5, 1.5]))

    def posterior(v):
        return np.exp(v - v.max(1, keepdims=True)) / np.exp(v - v.max(1, keepdims=True)).sum(
            1, keepdims=True
        )

    rows = np.arange(2000)
    residual, noise = representation(posterior(z), y, rows, posterior(pure), rows)
    assert residual < 1.5 * noise
    residual, noise = representation(posterior(z), y, rows, posterior(moved), rows)
    assert residual > 2.0 * noise


def test_reasons_name_what_is_wrong():
    z, y = draw(300, P, 0)
    t, _ = draw(300, Q, 1)
    few = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:2]]
    assert "rarest class has 2" in " ".join(estimate_prior(z[few], y[few], t).reasons)
    assert "20 target images" in " ".join(estimate_prior(z, y, t[:20]).reasons)
    blind = np.zeros((300, 3))
    reasons = " ".join(estimate_prior(blind, y, blind).reasons)
    assert "near-singular" in reasons
    assert "near chance" in reasons


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("max_agreement", 0.0, "EM and BBSE disagree"),
        ("max_spread", 0.0, "bootstrap interval is too wide"),
        ("max_feature_gap", -1.0, "features of one class differ"),
        ("min_condition", 1.0, "near-singular"),
    ],
)
def test_each_limit_has_its_reason(limit, value, reason):
    z, y = draw(300, P, 0)
    t, _ = draw(300, Q, 1)
    features = {"source_features": z, "target_features": t}
    assert estimate_prior(z, y, t, bootstraps=10, **features).trusted
    limits = TrustLimits(**{limit: value})
    found = estimate_prior(z, y, t, bootstraps=10, limits=limits, **features)
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_interval_knows_that_the_confusion_matrix_is_uncertain():
    """Few held-out images and a large target: resampling the target alone would be far too sure."""
    weak = 0.6 * MEANS
    z, y = draw(60, P, 0, means=weak)
    many, labels = draw(4000, P, 0, means=weak)
    t, _ = draw(4000, Q, 1, means=weak)
    few = estimate_prior(z, y, t, bootstraps=60)
    certain = estimate_prior(many, labels, t, bootstraps=60)
    assert (few.high - few.low).sum() > 2.0 * (certain.high - certain.low).sum()


def test_small_effective_sample_abstains():
    p = np.array([0.96, 0.03, 0.01])
    z, y = draw(2000, p, 0)
    t, _ = draw(500, (0.01, 0.01, 0.98), 1)
    found = estimate_prior(z, y, t, n_source=200, max_weight=100.0, bootstraps=0)
    assert found.ess < 30
    assert "effective sample" in " ".join(found.reasons)
    assert (found.weights == 1).all()


def test_class_without_held_out_images_abstains_with_finite_numbers():
    z, y = draw(300, (0.5, 0.5, 0.0), 0)
    t, _ = draw(300, Q, 1)
    found = estimate_prior(z, y, t, source_prior=(0.5, 0.5, 0.0), bootstraps=5)
    assert not found.trusted
    assert np.isfinite(found.estimate).all()


def test_tiny_samples_do_not_raise():
    z, y = draw(4, P, 0)
    found = estimate_prior(z, y, z[:1], bootstraps=5)
    assert not found.trusted
    assert np.isfinite(found.estimate).all()
    assert (found.estimate > 0).all()


def test_bootstrap_resamples_whole_patients():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 5)
    total = np.zeros(60)
    for _ in range(400):
        counts = group_counts(groups, rng)
        assert all(len(set(counts[groups == g])) == 1 for g in range(12))
        assert counts.sum() == 60
        total += counts
    assert total / 400 == pytest.approx(np.ones(60), abs=0.25)


def test_resamples_without_the_rare_class_are_survived():
    z, y = draw(120, P, 0)
    keep = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:1]]
    t, _ = draw(120, Q, 1)
    for method in ("em", "bbse", "bbse-hard", "rlls"):
        found = estimate_prior(z[keep], y[keep], t, method=method, bootstraps=15)
        assert np.isfinite(found.low).all()
        assert np.isfinite(found.high).all()


def test_grouped_interval_is_wider():
    z, y = draw(40, P, 0)
    z, y, g = np.repeat(z, 10, axis=0), np.repeat(y, 10), np.repeat(np.arange(40), 10)
    t, _ = draw(40, Q, 1)
    t = np.repeat(t, 10, axis=0)
    by_image = estimate_prior(z, y, t, bootstraps=60)
    by_patient = estimate_prior(z, y, t, source_groups=g, target_groups=g, bootstraps=60)
    ratio = (by_patient.high - by_patient.low).sum() / (by_image.high - by_image.low).sum()
    assert ratio > 1.8


def test_same_seed_same_answer_and_json():
    z, y = draw(200, P, 0)
    t, _ = draw(200, Q, 1)
    first, second = (estimate_prior(z, y, t, bootstraps=20, seed=3) for _ in range(2))
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    none = estimate_prior(z, y, t, bootstraps=0).to_json()
    assert none["low"] == [None, None, None]


def test_bad_input_is_a_clear_error():
    z, y = draw(50, P, 0)
    with pytest.raises(UsageError, match="Did you mean 'bbse"):
        estimate_prior(z, y, z, method="bbs")
    with pytest.raises(DataError, match="NaN"):
        estimate_prior(z, y, np.full((3, 3), np.nan))
    with pytest.raises(DataError, match="groups"):
        estimate_prior(z, y, z, source_groups=[1, 2])
