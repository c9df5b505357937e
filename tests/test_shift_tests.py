"""Tests of domains, prior and residual: formulas, level by patients, what they catch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.shift import (
    bbse_prior,
    conditional_confusion,
    domain_test,
    mmd2,
    predicted_marginal,
    prior_test,
    residual,
    residual_test,
    twosample,
)
from daptkit.shift.embedding import group_sums, kernel_embedding
from daptkit.shift.residual import _solve, wild_bootstrap_p
from daptkit.shift.twosample import matched_images, permuted_mmd2
from shift_worlds import SHIFTED, Site, gaussian_site


def pair(seed, n=60, m=60, prior=None, offset=0.0, **options):
    rng = np.random.default_rng(seed)
    source = gaussian_site(rng, n, **options)
    target = gaussian_site(
        rng, m, **({} if prior is None else {"prior": prior}), offset=offset, **options
    )
    return source, target


def groups_of(source: Site, target: Site):
    return {"source_groups": source.groups, "target_groups": target.groups}


def kernel(u, v, width):
    d2 = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    return sum(math.exp(-d2 / (2.0**e * width)) for e in (-2, -1, 0, 1, 2)) / 5


def test_embedding_has_the_kernel_as_inner_products():
    x = np.random.default_rng(0).normal(size=(40, 3))
    phi = kernel_embedding(x, 0)
    width = float(np.median([((a - b) ** 2).sum() for a, b in itertools.combinations(x, 2)]))
    wanted = [[kernel(a, b, width) for b in x] for a in x]
    np.testing.assert_allclose(phi @ phi.T, wanted, atol=1e-5)


def test_embedding_by_landmarks_is_close_and_keeps_the_order_of_rows():
    x = np.random.default_rng(0).normal(size=(2500, 4)) * [3.0, 1.0, 0.3, 0.1]
    phi = kernel_embedding(x, 0)
    assert phi.shape[1] <= 500 and phi.dtype == np.float32
    some = np.array([0, 7, 1200, 2499])
    exact = kernel_embedding(np.vstack([x[some], x[:: 2500 // 400]])[:404], 0)
    np.testing.assert_allclose(phi[some] @ phi[some].T, exact[:4] @ exact[:4].T, atol=0.05)
    assert kernel_embedding(np.ones((30, 2)), 0) is None


def test_group_sums_are_loops():
    values, groups = np.arange(12.0).reshape(6, 2), np.array([2, 0, 2, 1, 0, 2])
    wanted = [sum(values[i] for i in range(6) if groups[i] == g) for g in range(3)]
    np.testing.assert_array_equal(group_sums(values, groups, 3), wanted)


def test_domain_statistic_is_the_v_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(18, 3)) + 0.7
    found = domain_test(x, y, permutations=99)
    every = np.vstack([x, y])
    width = float(np.median([((a - b) ** 2).sum() for a, b in itertools.combinations(every, 2)]))

    def mean(first, second):
        return sum(kernel(a, b, width) for a in first for b in second) / len(first) / len(second)

    assert found.statistic == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y), abs=1e-5)
    assert found.p == 1 / 100 and (found.source_patients, found.target_patients) == (20, 18)


def test_permutations_are_those_of_whole_patients():
    """All divisions of 3 + 3 patients by hand: the p value is their share, within its noise."""
    rng = np.random.default_rng(3)
    sums, sizes = rng.normal(size=(6, 2)) * 2, np.array([1.0, 3.0, 2.0, 2.0, 1.0, 3.0])

    def value(inside):
        outside = [g for g in range(6) if g not in inside]
        gap = sums[list(inside)].sum(0) / sizes[list(inside)].sum()
        gap = gap - sums[outside].sum(0) / sizes[outside].sum()
        return float(gap @ gap)

    values = [value(inside) for inside in itertools.combinations(range(6), 3)]
    observed, p = permuted_mmd2(sums, sizes, 3, 4000, rng)
    assert observed == pytest.approx(value((0, 1, 2)))
    assert p == pytest.approx(np.mean([v >= observed * (1 - 1e-9) for v in values]), abs=0.03)


def rejections(test, draws, groups=True, **options):
    count = 0
    for seed in range(draws):
        s, t = pair(seed, 40, 40, images=(6, 6), within=0.8, **options)
        count += test(s, t, groups_of(s, t) if groups else {}, seed).p <= 0.05
    return count / draws


def domain(s, t, groups, seed):
    return domain_test(s.x, t.x, permutations=99, seed=seed, **groups)


def prior(s, t, groups, seed):
    return prior_test(s.logits, t.logits, permutations=99, seed=seed, **groups)


def remaining(s, t, groups, seed):
    return residual_test(s.x, s.logits, s.y, t.x, t.logits, resamples=99, seed=seed, **groups)


@pytest.mark.parametrize("test", [domain, prior, remaining])
def test_several_images_of_a_patient_do_not_break_the_level(test):
    assert rejections(test, 20) <= 0.15  # 4 of 20 have a chance of 1.6% at level .05
    assert rejections(test, 6, groups=False) >= 0.5  # the same sites, image by image


def test_unequal_numbers_of_images_do_not_break_the_level_of_the_domain_test():
    def p(seed, **options):
        rng = np.random.default_rng(seed)
        s = gaussian_site(rng, 80, images=(1, 1))
        t = gaussian_site(rng, 25, images=(8, 8), within=0.9)
        return domain_test(s.x, t.x, permutations=99, seed=seed, **groups_of(s, t)).p

    assert np.mean([p(seed) <= 0.05 for seed in range(30)]) <= 0.17


def test_matched_images_are_quantile_by_quantile():
    rng = np.random.default_rng(0)
    source, target = np.repeat([0, 1, 2], [1, 4, 2]), np.repeat([0, 1, 2], [3, 3, 3])
    s, t = matched_images(source, target, rng)
    assert sorted(np.bincount(source[s])) == [1, 2, 3] == sorted(np.bincount(target[t]))
    same = np.repeat(np.arange(50), 3)
    assert [len(v) for v in matched_images(same, same, rng)] == [150, 150]
    found = domain_test(*(np.random.default_rng(1).normal(size=(n, 2)) for n in (60, 30)),
                        source_groups=np.arange(60) // 4, target_groups=np.arange(30) // 2,
                        permutations=9)  # fmt: skip
    assert found.source_images == 30 and found.note.startswith("30 images left out")


def test_prior_statistic_is_hotellings_with_patients_as_clusters():
    rng = np.random.default_rng(0)
    s, t = gaussian_site(rng, 30), gaussian_site(rng, 25, SHIFTED)
    found = prior_test(s.logits, t.logits, permutations=99, **groups_of(s, t))
    means, covariances = [], []
    for site in (s, t):
        f = np.exp(site.logits - site.logits.max(1, keepdims=True))
        f = (f / f.sum(1, keepdims=True))[:, :2]  # the third is known from these
        mu = f.mean(axis=0)
        v = np.zeros((2, 2))
        for g in np.unique(site.groups):
            total = (f[site.groups == g] - mu).sum(axis=0)
            v += np.outer(total, total) / len(f) ** 2
        means.append(mu)
        covariances.append(v)
    d = means[1] - means[0]
    wanted = float(d @ np.linalg.inv(covariances[0] + covariances[1]) @ d)
    assert found.statistic == pytest.approx(wanted, rel=1e-5)
    assert 0.01 <= found.p <= 0.2


def test_prior_test_holds_where_only_the_spread_of_posteriors_differs():
    """Equal mean, other confidence and other number of images: not a change of the prior."""

    def p(seed):
        rng = np.random.default_rng(seed)
        z = [np.column_stack([scale * np.repeat(rng.normal(size=n), per), np.zeros(n * per)])
             for n, per, scale in ((120, 1, 1.0), (40, 4, 6.0))]  # fmt: skip
        groups = {"source_groups": np.arange(120), "target_groups": np.repeat(np.arange(40), 4)}
        return prior_test(*z, permutations=99, seed=seed, **groups).p

    assert np.mean([p(seed) <= 0.05 for seed in range(60)]) <= 0.14


def test_residual_is_the_weighted_mmd():
    s, t = pair(0, 40, 40, SHIFTED)
    found = remaining(s, t, groups_of(s, t), 0)
    soft = [np.exp(v.logits - v.logits.max(1, keepdims=True)) for v in (s, t)]
    soft = [f / f.sum(1, keepdims=True) for f in soft]
    q = bbse_prior(conditional_confusion(soft[0], s.y), predicted_marginal(soft[1]))
    w = (q / np.bincount(s.y) * len(s.y))[s.y]
    # The V-statistic is the unbiased one plus what pairs of an image with itself add.
    unbiased = mmd2(s.x, t.x, source_weights=w, limit=None)
    assert found.statistic == pytest.approx(v_statistic(s.x, t.x, w), abs=1e-5)
    assert found.statistic > unbiased


def v_statistic(x, y, w):
    pooled = np.vstack([x, y])
    d2 = ((pooled[:, None] - pooled) ** 2).sum(-1)
    width = np.median(d2[np.triu_indices(len(pooled), 1)])
    k = np.mean([np.exp(-d2 / (2.0**e * width)) for e in (-2, -1, 0, 1, 2)], axis=0)
    members = np.append(w / w.sum(), np.full(len(y), -1 / len(y)))
    return float(members @ k @ members)


def test_solution_sums_to_one_and_is_exact_for_a_mixture():
    a = np.array([[0.8, 0.1, 0.2], [0.1, 0.7, 0.2], [0.1, 0.2, 0.6]])
    q = np.array([0.2, 0.5, 0.3])
    inverse, found = _solve(a, a @ q)
    np.testing.assert_allclose(found, q)
    np.testing.assert_allclose(inverse.sum(axis=0), 0.0, atol=1e-12)
    assert _solve(np.full((2, 2), 0.5), np.array([0.9, 0.1]))[1].sum() == pytest.approx(1.0)


def test_influence_is_the_derivative_of_the_residual():
    """Each patient's term against the residual with that patient counted a little more."""
    s, t = pair(1, 25, 20, SHIFTED)
    rng = np.random.default_rng(0)
    phi_s, phi_t = (np.tanh(v.x @ rng.normal(size=(v.x.shape[1], 4))) for v in (s, t))
    f_s, f_t = (np.exp(v.logits - v.logits.max(1, keepdims=True)) for v in (s, t))
    f_s, f_t = f_s / f_s.sum(1, keepdims=True), f_t / f_t.sum(1, keepdims=True)
    n_k = np.bincount(s.y)

    def value(ws, wt):
        a = np.stack([(ws * (s.y == k)) @ f_s / (ws @ (s.y == k)) for k in range(3)], axis=1)
        m = np.stack([(ws * (s.y == k)) @ phi_s / (ws @ (s.y == k)) for k in range(3)], axis=1)
        q = _solve(a, wt @ f_t / wt.sum())[1]
        return m @ q - wt @ phi_t / wt.sum()

    terms = residual._Terms.of(phi_s, f_s, s.y, s.groups, phi_t, f_t, t.groups)
    ones_s, ones_t, step = np.ones(len(s.y)), np.ones(len(t.y)), 1e-5
    np.testing.assert_allclose(terms.residual, value(ones_s, ones_t), atol=1e-10)
    for g in (0, 11):
        more = (value(ones_s + step * (s.groups == g), ones_t) - terms.residual) / step
        of_g = s.groups == g
        leverage = of_g.sum() / n_k[s.y[of_g][0]]
        np.testing.assert_allclose(terms.influence[g] * (1 - leverage), more, atol=1e-4)
        more = (value(ones_s, ones_t + step * (t.groups == g)) - terms.residual) / step
        row = terms.influence[25 + g] * (1 - (t.groups == g).sum() / len(t.y))
        np.testing.assert_allclose(row, more, atol=1e-4)


def test_wild_bootstrap_is_every_sign():
    rng = np.random.default_rng(0)
    influence, r = rng.normal(size=(6, 2)), np.array([2.0, 1.0])
    every = [np.array(s) @ influence for s in itertools.product((-1, 1), repeat=6)]
    wanted = np.mean([v @ v >= r @ r for v in every])
    assert wild_bootstrap_p(r, influence, 5000, rng) == pytest.approx(wanted, abs=0.03)


def test_estimated_weights_widen_the_null(monkeypatch):
    """The weights of a noisy classifier are noisy: a null without that rejects far too often."""

    def ps():
        for seed in range(16):
            s, t = pair(seed, 60, 60, SHIFTED)
            noise = np.random.default_rng(seed + 99)
            z = [0.16 * v.logits + 2 * noise.normal(size=v.logits.shape) for v in (s, t)]
            s, t = Site(s.x, z[0], s.y, s.groups), Site(t.x, z[1], t.y, t.groups)
            yield remaining(s, t, groups_of(s, t), seed).p

    assert np.mean([p <= 0.05 for p in ps()]) <= 0.05

    def certain(a, mu):
        inverse, q = _solve(a, mu)
        return 0.0 * inverse, q

    monkeypatch.setattr(residual, "_solve", certain)
    assert np.mean([p <= 0.05 for p in ps()]) >= 0.15


def test_label_shift_leaves_no_residual_and_moved_features_do():
    kinds = {}
    for name, prior_, offset in (("label", SHIFTED, 0.0), ("moved", None, 0.8)):
        found = [remaining(*(p := pair(s, 60, 60, prior_, offset)), groups_of(*p), s).p
                 for s in range(6)]  # fmt: skip
        kinds[name] = np.mean([p <= 0.05 for p in found])
    assert kinds["label"] <= 0.25 and kinds["moved"] >= 0.75


def test_what_cannot_be_tested_says_why():
    s, t = pair(0, 40, 40)
    few = slice(0, 10)
    assert "fewer than 15" in domain_test(s.x[few], t.x).note
    two = np.arange(len(s.x)) % 2
    found = prior_test(s.logits, t.logits, source_groups=two)
    assert not found.tested and "2 patients, fewer than 5" in found.note
    assert found.to_json()["p"] is None and found.to_json()["source_patients"] == 2
    assert "all alike" in domain_test(np.ones((20, 2)), np.ones((20, 2))).note
    flat = np.zeros_like(s.logits), np.zeros_like(t.logits)
    assert "the same probabilities" in prior_test(*flat).note
    assert "cannot tell" in residual_test(s.x, flat[0], s.y, t.x, flat[1]).note
    assert (
        "fewer than two source classes"
        in residual_test(s.x, s.logits, np.zeros(len(s.x), int), t.x, t.logits).note
    )
    with pytest.raises(DataError, match="columns"):
        domain_test(s.x, t.x[:, :3])


def test_a_class_of_one_patient_is_left_out_and_said_so():
    s, t = pair(0, 60, 60)
    y = s.y.copy()
    lonely = s.groups == s.groups[y == 2][0]
    keep = (y != 2) | lonely
    found = residual_test(
        s.x[keep], s.logits[keep], y[keep], t.x[t.y != 2], t.logits[t.y != 2],
        source_groups=s.groups[keep], target_groups=t.groups[t.y != 2], resamples=99,
    )  # fmt: skip
    assert found.tested and found.note.startswith("1 classes of one source patient")


def test_blocks_of_resamples_do_not_change_what_is_counted(monkeypatch):
    s, t = pair(0, 40, 40, offset=0.3)
    whole = [f(s, t, groups_of(s, t), 0) for f in (domain, prior, remaining)]
    monkeypatch.setattr(twosample, "_NUMBERS", 800)
    parts = [f(s, t, groups_of(s, t), 0) for f in (domain, prior, remaining)]
    for a, b in zip(whole, parts, strict=True):
        assert a.statistic == b.statistic and a.p == pytest.approx(b.p, abs=0.15)
