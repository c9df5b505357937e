"""The bbse method against a fit context that simulates logits of a known label shift."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from daptkit.method import DomainBatch, Method, TaskInfo
from daptkit.plugin import NEEDS, ROLES, SHIFTS, TRAINS, build_options
from daptkit.shift import fit_rule
from daptkit_bbse.method import BBSE
from daptkit_bbse.plugin import BBSEOptions, daptkit_methods

P = np.array([0.5, 0.3, 0.2])
Q = np.array([0.1, 0.3, 0.6])
MEANS = np.array([[2.0, 0.0], [0.0, 2.0], [-1.5, -1.5]])


class FakeContext:
    """Three Gaussians; a model that knows them, trained under the weights in force."""

    epochs = 10
    seed = 0

    def __init__(
        self,
        method: Method | None = None,
        *,
        n_val: int = 600,
        finetune: str = "full",
        offset: float = 0.0,
        strength: float = 1.0,
        twin: FakeContext | None = None,
    ) -> None:
        self.twin = twin
        self.n_val, self.finetune, self.offset, self.strength = n_val, finetune, offset, strength
        self.n_target = 1500
        self.method, self.epoch, self.done = method, 0, 0.0
        self.notes: list[str] = []
        self.logged: dict[str, float] = {}
        self.asked: list[str] = []
        self.task = task()

    @property
    def num_classes(self) -> int:
        return 3

    @property
    def progress(self) -> float:
        return self.done

    def note(self, text: str) -> None:
        self.notes.append(text)

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value

    def images(self, domain: str, limit: int) -> torch.Tensor:
        raise AssertionError("bbse needs no images")

    def source_only(
        self, split: str, layers: tuple[str, ...] = ("features",)
    ) -> DomainBatch | None:
        return None if self.twin is None else self.twin.predict(split, layers)

    def predict(self, split: str, layers: tuple[str, ...] = ("features",)) -> DomainBatch:
        self.asked.append(split)
        n = {"source_val": self.n_val, "source_train": 300, "target": self.n_target}[split]
        rng = np.random.default_rng({"source_val": 1, "source_train": 2, "target": 3}[split])
        y = rng.choice(3, n, p=Q if split == "target" else P)
        x = self.strength * MEANS[y] + rng.normal(size=(n, 2))
        x += self.offset if split == "target" else 0.0
        w = np.ones(3) if self.method is None else self.method.class_weights()
        w = np.ones(3) if w is None else np.asarray(w)
        squares = ((x[:, None] - self.strength * MEANS) ** 2).sum(-1)
        z = torch.as_tensor(np.log(P * w) - 0.5 * squares, dtype=torch.float32)
        taps = {"features": torch.as_tensor(x, dtype=torch.float32), "logits": z}
        if "trunk" in layers:
            taps["trunk"] = taps["features"]
        source = split != "target"
        return DomainBatch(
            logits=z,
            taps=taps,
            labels=torch.as_tensor(y) if source else None,
            weights=torch.as_tensor(w[y] if source else np.ones(n), dtype=torch.float32),
            groups=torch.arange(n) + (10_000 if split == "source_val" else 0),
            index=torch.arange(n),
        )


def task() -> TaskInfo:
    return TaskInfo(
        classes=("a", "b", "c"),
        dims={"features": 2, "logits": 3},
        source_prior=torch.tensor(P, dtype=torch.float32),
        n_source=2000,
        n_target=1500,
    )


def make(**options) -> BBSE:
    options.setdefault("bootstrap", 20)
    return BBSE(build_options(BBSEOptions, options), task())


def train(method: BBSE, ctx: FakeContext, epochs: int = 10) -> None:
    method.on_fit_start(ctx)
    for epoch in range(epochs):
        ctx.epoch, ctx.done = epoch, (epoch + 1) / epochs
        method.on_epoch_end(ctx)
    method.on_fit_end(ctx)


def test_spec_keeps_the_contract_and_imports_no_torch():
    spec = daptkit_methods()
    assert spec.needs <= NEEDS
    assert spec.roles == {"class_weights", "target_prior"} <= ROLES
    assert spec.addresses <= SHIFTS
    assert spec.trains in TRAINS
    code = "import sys, daptkit_bbse.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_source_only_model_sets_the_weights_of_the_first_step():
    method = make(shrink=0.0)
    method.on_fit_start(FakeContext(method, twin=FakeContext()))
    assert method.class_weights().numpy() == pytest.approx(Q / P, abs=0.25)
    unaided = make(shrink=0.0)
    unaided.on_fit_start(FakeContext(unaided))
    assert unaided.class_weights().tolist() == [1.0, 1.0, 1.0]


def test_an_adapted_model_that_went_wrong_leaves_prior_and_weights_to_the_source_only_one():
    method = make(shrink=0.0)
    # The adapted model's target features lie far from every source class.
    ctx = FakeContext(method, offset=4.0, twin=FakeContext())
    train(method, ctx)
    prior = method.target_prior()
    assert prior is not None
    assert np.abs(prior.numpy() - Q).sum() < 0.12
    assert method.class_weights().numpy() == pytest.approx(Q / P, abs=0.25)
    assert method.report()["evidence"] == "source-only"
    assert any("source-only model's" in note for note in ctx.notes)
    low, high = method.target_prior_interval()
    assert bool((low <= prior).all() and (prior <= high).all())


def test_neither_model_trusted_means_abstention():
    method = make()
    ctx = FakeContext(method, offset=4.0, twin=FakeContext(offset=4.0))
    train(method, ctx)
    assert method.target_prior() is None
    assert method.class_weights().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("estimator", ["em", "bbse", "bbse-hard", "rlls"])
def test_label_shift_is_recovered_with_training_under_its_own_weights(estimator):
    method = make(estimator=estimator, shrink=0.0)
    ctx = FakeContext(method)
    train(method, ctx)
    prior = method.target_prior()
    assert prior is not None
    assert np.abs(prior.numpy() - Q).sum() < 0.12
    assert method.class_weights().numpy() == pytest.approx(Q / P, abs=0.25)
    assert float(method.class_weights().numpy() @ P) == pytest.approx(1.0, abs=1e-4)
    assert not ctx.notes
    assert set(ctx.logged) == {
        "bbse/trusted",
        "bbse/ess",
        "bbse/agreement",
        "bbse/feature_gap",
    }


def test_weights_wait_for_the_warm_up_and_move_by_the_average():
    method = make(warmup=0.35, ema=0.5, shrink=0.0)
    ctx = FakeContext()
    for done, share in ((0.1, 0.0), (0.3, 0.0), (0.4, 0.5), (0.5, 0.75), (0.6, 0.875)):
        ctx.done = done
        method.on_epoch_end(ctx)
        got = (method.weights.numpy() - 1.0)[2] / (Q[2] / P[2] - 1.0)
        assert got == pytest.approx(share, abs=0.08)
    before = method.weights.clone()
    ctx.done = 1.0
    method.on_epoch_end(ctx)  # no step follows, and calibration needs the weights trained under
    assert torch.equal(method.weights, before)


def test_switch_offs():
    only_prior = make(weights=False)
    ctx = FakeContext(only_prior)
    train(only_prior, ctx)
    assert only_prior.class_weights() is None
    assert only_prior.target_prior() is not None
    assert ctx.asked == ["source_val", "target"]  # once, at the end
    only_weights = make(prior=False)
    train(only_weights, FakeContext(only_weights))
    assert only_weights.target_prior() is None
    assert not torch.equal(only_weights.class_weights(), torch.ones(3))


def test_abstains_and_says_why():
    method = make()
    ctx = FakeContext(method, offset=2.0, strength=0.25)
    train(method, ctx)
    assert method.target_prior() is None
    assert torch.equal(method.class_weights(), torch.ones(3))
    assert len(ctx.notes) == 1
    assert "not trusted" in ctx.notes[0]
    report = method.report()
    assert report["trusted"] is False
    assert report["prior"] is None
    assert report["reasons"]


def test_abstention_after_weighted_epochs_leaves_predictions_to_the_sources_prior():
    """The weights must stay known to the host, which takes them back at prediction."""
    method = make(shrink=0.0)
    ctx = FakeContext(method, n_val=3000)
    for epoch in range(9):
        ctx.epoch, ctx.done = epoch, (epoch + 1) / 10
        method.on_epoch_end(ctx)
    trained_under = method.class_weights().clone()
    assert trained_under.numpy() == pytest.approx(Q / P, abs=0.25)
    validation = ctx.predict("source_val")
    ctx.n_target = 20  # too few to trust
    method.on_fit_end(ctx)
    assert method.target_prior() is None
    assert torch.equal(method.class_weights(), trained_under)
    assert "keep the source's prior" in ctx.notes[-1]
    rare = validation.labels == 2
    few = torch.cat([torch.nonzero(~rare)[:, 0], torch.nonzero(rare)[:24, 0]])  # no bias is fitted
    rule = fit_rule(
        validation.logits[few], validation.labels[few], method.class_weights(), None, "map", "abc"
    )
    x = validation.features.double().numpy()
    exact = np.exp(np.log(P) - 0.5 * ((x[:, None] - MEANS) ** 2).sum(-1))
    exact /= exact.sum(1, keepdims=True)
    assert np.abs(rule.posterior(validation.logits) - exact).mean() < 0.03


def test_abstention_can_be_switched_off():
    method = make(abstain=False)
    train(method, FakeContext(method, offset=2.0, strength=0.25))
    assert method.target_prior() is not None


def test_state_round_trip():
    method = make()
    assert method.target_prior() is None
    empty = {k: v.clone() for k, v in method.state_dict().items()}
    train(method, FakeContext(method))
    again = make()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.class_weights(), method.class_weights())
    assert torch.equal(again.target_prior(), method.target_prior())
    again.load_state_dict(empty)
    assert again.target_prior() is None
    assert not list(method.parameters())
    assert method.param_groups() == []


def test_report_is_plain_json():
    method = make()
    assert json.dumps(method.report())
    train(method, FakeContext(method))
    report = json.loads(json.dumps(method.report(), allow_nan=False))
    assert report["trusted"] is True
    assert report["evidence"] == "held-out"
    assert len(report["low"]) == len(report["prior"]) == 3
    assert all(a <= b for a, b in zip(report["low"], report["high"], strict=True))


def test_small_validation_of_a_frozen_trunk_is_cross_fitted_once():
    method = make()
    ctx = FakeContext(method, n_val=40, finetune="frozen")
    train(method, ctx)
    assert method.report()["evidence"] == "cross-fitted"
    assert ctx.asked.count("source_train") == 1
    assert np.abs(method.target_prior().numpy() - Q).sum() < 0.15
    assert [n for n in ctx.notes if "cross-fitting" in n] == ctx.notes
    assert len(ctx.notes) == 1


def test_small_validation_without_frozen_trunk_is_shrunk():
    method = make()
    ctx = FakeContext(method, n_val=60)
    train(method, ctx)
    assert method.report()["evidence"] == "small"
    assert "shrunk" in ctx.notes[0]
    assert "source_train" not in ctx.asked


def test_resume_makes_the_same_cross_fit():
    first, second = make(), make()
    for method in (first, second):
        method.on_fit_end(FakeContext(method, n_val=40, finetune="frozen"))
    assert torch.equal(first.target_prior(), second.target_prior())
