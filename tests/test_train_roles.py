"""Class weights and target prior: checked, scaled, honoured in the loss, applied once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.errors import PluginError
from daptkit.method import Method, TaskInfo
from daptkit.model import load_model_folder
from daptkit.shift import PredictionRule
from daptkit.train.adaptation import run_adaptation
from daptkit.train.inference import SplitPasses, as_numpy
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.roles import Roles
from fakes import in_process, make_job, tiny_config

TASK = TaskInfo(
    classes=("a", "b", "c"),
    dims={"features": 4},
    source_prior=torch.tensor([0.5, 0.3, 0.2]),
    n_source=10,
    n_target=10,
)
BOTH = frozenset({"class_weights", "target_prior"})


class Owner(Method):
    """Owns both roles and returns what its class says."""

    weights: Any = None
    prior: Any = None

    def class_weights(self) -> Any:
        return self.weights() if callable(self.weights) else self.weights

    def target_prior(self) -> Any:
        return self.prior() if callable(self.prior) else self.prior


def owner(weights: Any = None, prior: Any = None) -> type[Method]:
    return type(
        "Given",
        (Owner,),
        {"weights": staticmethod(weights) if callable(weights) else weights, "prior": prior},
    )


def roles(method: type[Method]) -> Roles:
    made = method(None, TASK)
    return Roles(dict.fromkeys(BOTH, "fake"), {"fake": made}, {"fake": "daptkit-fake 1.2"}, TASK)


def test_weights_are_scaled_to_mean_one_under_the_source_prior() -> None:
    got = roles(owner(weights=torch.tensor([2.0, 0.0, 7.0]))).class_weights()
    mass = 0.5 * 2.0 + 0.3 * 0.0 + 0.2 * 7.0
    assert got.tolist() == pytest.approx([2.0 / mass, 0.0, 7.0 / mass])
    assert float((got * TASK.source_prior).sum()) == pytest.approx(1.0)
    assert roles(owner()).class_weights().tolist() == [1.0, 1.0, 1.0]
    assert roles(owner()).target_prior() is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2), r"has shape \(2,\), not one value a class"),
        (torch.tensor([1.0, float("nan"), 1.0]), "negative or non-finite"),
        (torch.tensor([1.0, -0.5, 1.0]), "negative or non-finite"),
        (torch.zeros(3), "no class of the source a positive weight"),
        (np.ones(3), "is ndarray, not a tensor"),
        (lambda: 1 / 0, r"failed in class_weights\(\): ZeroDivisionError"),
    ],
)
def test_a_broken_owner_is_named(value: Any, words: str) -> None:
    with pytest.raises(PluginError, match=words) as caught:
        roles(owner(weights=value)).class_weights()
    assert "'fake' (daptkit-fake 1.2)" in str(caught.value)


def test_a_prior_of_zeros_is_a_fault() -> None:
    with pytest.raises(PluginError, match="its target_prior sums to 0"):
        roles(owner(prior=torch.zeros(3))).target_prior()


def test_training_and_whole_splits_use_the_weights(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watcher(owner(weights=torch.tensor([3.0, 1.0, 0.5]))):  # type: ignore[misc]
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            seen.append((source, ctx))
            return {}

        def on_epoch_end(self, ctx: Any) -> None:
            seen.append(ctx.predict("source_val"))

    job, _ = make_job(tiny_config(tmp_path), in_process(Watcher, roles=BOTH))
    result = Trainer(job).run()
    prior = job.data.task.source_prior
    expected = torch.tensor([3.0, 1.0, 0.5]) / (prior * torch.tensor([3.0, 1.0, 0.5])).sum()
    torch.testing.assert_close(result.class_weights, expected)
    source, context = seen[0]
    torch.testing.assert_close(source.weights, expected[source.labels])
    torch.testing.assert_close(context.class_weights, expected)
    torch.testing.assert_close(seen[-1].weights, expected[seen[-1].labels])


def test_weights_set_after_the_last_step_were_not_in_force(tmp_path: Path) -> None:
    class Late(Owner):
        def on_fit_end(self, ctx: Any) -> None:
            self.weights = torch.tensor([1.0, 2.0, 3.0])

    job, _ = make_job(tiny_config(tmp_path), in_process(Late, roles=BOTH))
    assert Trainer(job).run().class_weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("weights", [None, [0.4, 0.6, 2.5]])
def test_the_prior_is_corrected_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[float] | None
) -> None:
    """log P_t(y|x) = log P_w(y|x) + log q - log pi, on logits that nothing has touched."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    q = torch.tensor([0.1, 0.2, 0.7])
    given = None if weights is None else torch.tensor(weights)
    method = in_process(owner(weights=given, prior=q), roles=BOTH)
    monkeypatch.setattr("daptkit.train.adaptation.load_methods", lambda names: [method])
    # Whatever the guard makes of so bold a prior.
    config = tiny_config(tmp_path, method="fake", guard=False)
    result = run_adaptation(config, SilentReporter()).result
    loaded = load_model_folder(result.out / "model")
    rule = PredictionRule.from_json(loaded.rule)
    assert rule.target_prior == pytest.approx(q.numpy())
    job, maker = make_job(tiny_config(tmp_path), out=tmp_path / "other")
    passes = SplitPasses(loaded.net, maker.prepared.data, maker.precision)
    labels = job.data.source.labels[job.data.val_rows]
    w = np.ones(3) if given is None else given.double().numpy()
    pi = np.zeros(3)
    for row, label in zip(_calibrated(passes, rule, "source_val"), labels, strict=True):
        pi += w[label] * row
    pi /= pi.sum()
    corrected = _calibrated(passes, rule, "target") * q.double().numpy() / pi
    corrected /= corrected.sum(axis=1, keepdims=True)
    logits = as_numpy(passes.of("target")[0])
    assert np.abs(rule.posterior(logits) - corrected).max() < 0.01
    record = json.loads((result.out / "run.json").read_text())
    assert record["figures"]["prior"]["target"] == pytest.approx(
        dict(zip("012", q.tolist(), strict=True))
    )


def _calibrated(passes: SplitPasses, rule: PredictionRule, split: str) -> Any:
    logits = as_numpy(passes.of(split)[0])
    z = logits / rule.calibration.temperature + np.asarray(rule.calibration.bias)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
