"""What methods may ask for between epochs, and what that leaves of the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from daptkit.errors import PluginError, UsageError
from daptkit.method import Method
from daptkit.train import inference
from daptkit.train.deliver import run_passes
from daptkit.train.device import Precision, full_precision
from daptkit.train.inference import SplitPasses, forward_rows
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, method_of, tiny_config

HOOKS = ("on_fit_start", "on_epoch_end", "on_fit_end")


class Curious(Method):
    """Asks for every split at every hook."""

    def look(self, ctx: Any) -> None:
        for split in ("source_train", "source_val", "target"):
            ctx.predict(split)

    on_fit_start = on_epoch_end = on_fit_end = look


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Number of passes by number of rows: 90 train, 30 validation, 90 + 60 target."""
    passes: Counter[int] = Counter()

    def forward(net: Any, domain: Any, rows: Any, **values: Any) -> Any:
        passes[len(rows)] += 1
        return forward_rows(net, domain, rows, **values)

    monkeypatch.setattr(inference, "forward_rows", forward)
    return passes


def test_a_split_is_passed_once_for_each_state_of_the_model(
    tmp_path: Path, counted: Counter[int]
) -> None:
    config = tiny_config(tmp_path, epochs=2)
    job, _ = make_job(config, in_process(Curious), in_process(Curious, "other"))
    result = Trainer(job).run()
    states = 3  # the start and the end of each epoch
    # At the end the target is passed as a whole, its tests included, for what is delivered.
    once = {90: 2 * states - 1, 30: states, 150: 1}
    assert counted == once
    delivered = run_passes(result.passes)
    assert counted == once
    logits, taps = result.passes.of("target", ("features", "logits"))
    assert torch.equal(logits.double(), torch.from_numpy(delivered.target_logits[:90]))
    assert len(taps["features"]) == 90


def test_further_layers_cost_one_more_pass(tmp_path: Path, counted: Counter[int]) -> None:
    job, maker = make_job(tiny_config(tmp_path))
    passes = SplitPasses(job.net, job.data, maker.precision)
    few = passes.of("source_val")
    more = passes.of("source_val", ("features", "trunk"))
    assert passes.of("source_val", ("trunk",)) is more
    assert counted == {30: 2}
    assert torch.equal(few[0], more[0])
    with torch.no_grad():
        trunk = job.net.eval().trunk(job.data.source.images.batch(job.data.val_rows))
    torch.testing.assert_close(more[1]["trunk"], trunk)


def test_layers_that_were_asked_for_come_with_the_first_pass_of_the_next_state(
    tmp_path: Path, counted: Counter[int]
) -> None:
    class Late(Method):
        def on_epoch_end(self, ctx: Any) -> None:
            ctx.predict("source_val")
            assert ctx.predict("source_val", ("trunk", "features")).taps["trunk"].shape[0] == 30

    job, _ = make_job(tiny_config(tmp_path, epochs=4), in_process(Late))
    Trainer(job).run()
    # The target is passed for the scores of each epoch, after the last one as a whole.
    assert counted == {30: 4 + 1, 90: 3, 150: 1}


def test_hooks_see_a_model_in_eval_mode_and_no_target_labels(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watcher(Method):
        def __init__(self, options: Any, task: Any) -> None:
            super().__init__(options, task)
            self.noise = nn.Dropout(0.5)

        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            assert self.noise.training
            return {}

        def on_epoch_end(self, ctx: Any) -> None:
            seen.append(self.noise.training)
            batch = ctx.predict("target", ("features", "logits"))
            seen.append(batch.labels)
            assert torch.equal(batch.weights, torch.ones(len(batch)))
            assert batch.index.tolist() == list(range(90))
            assert ctx.images("target", 7).shape == (7, 1, 16, 16)
            assert float(ctx.images("source", 1000).max()) <= 1.0
            ctx.log("watch/x", 2.5)

    job, _ = make_job(tiny_config(tmp_path), in_process(Watcher))
    Trainer(job).run()
    assert seen == [False, None]
    assert '"watch/x": 2.5' in job.folder.metrics.read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_is_named(tmp_path: Path, hook: str) -> None:
    broken = type("Broken", (Method,), {hook: lambda self, ctx: ctx.predict("target_test")})
    job, _ = make_job(tiny_config(tmp_path), in_process(broken))
    with pytest.raises(PluginError, match=rf"failed in {hook}\(\): ValueError: unknown split"):
        Trainer(job).run()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (lambda self: {"x": torch.ones(1)}, "Tensor is not JSON serializable"),
        (lambda self: [1], "returned list instead of a dict"),
        (lambda self: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_report_that_cannot_be_stored_is_named(tmp_path: Path, report: Any, words: str) -> None:
    broken = type("Broken", (Method,), {"report": report})
    job, _ = make_job(tiny_config(tmp_path), in_process(broken))
    with pytest.raises(PluginError, match=words) as caught:
        Trainer(job).run()
    assert "'fake' (daptkit-fake 1.2)" in str(caught.value)


def test_a_whole_split_pass_restores_the_mode_of_every_module(tmp_path: Path) -> None:
    job, maker = make_job(tiny_config(tmp_path, model="resnet18", img_size=32))
    job.net.freeze_backbone()
    job.net.train()
    modes = {name: module.training for name, module in job.net.named_modules()}
    assert not modes["backbone.bn1"]
    assert modes["head"]
    before = {name: value.clone() for name, value in job.net.state_dict().items()}
    forward_rows(job.net, job.data.source, job.data.val_rows, precision=maker.precision)
    assert {name: m.training for name, m in job.net.named_modules()} == modes
    assert all(torch.equal(value, before[n]) for n, value in job.net.state_dict().items())
    with pytest.raises(UsageError, match="no layer 'nowhere'"):  # restored after a failure too
        forward_rows(
            job.net,
            job.data.source,
            job.data.val_rows,
            layers=("nowhere",),
            precision=maker.precision,
        )
    assert {name: m.training for name, m in job.net.named_modules()} == modes


def test_what_is_delivered_is_in_full_precision(tmp_path: Path) -> None:
    job, _ = make_job(tiny_config(tmp_path))
    mixed = Precision(torch.device("cpu"), enabled=True, dtype="bfloat16")
    rough = SplitPasses(job.net, job.data, mixed).of("source_val")[0]
    exact = SplitPasses(job.net, job.data, full_precision(torch.device("cpu"))).of("source_val")[0]
    with pytest.raises(ValueError, match="a model in training"):
        run_passes(SplitPasses(job.net, job.data, mixed))
    delivered = run_passes(SplitPasses(job.net, job.data, mixed, delivered=True))
    assert not torch.equal(rough, exact)
    assert torch.equal(torch.from_numpy(delivered.val_logits), exact.double())


def test_mixed_precision_costs_no_second_pass_of_what_is_delivered(
    tmp_path: Path, counted: Counter[int]
) -> None:
    job, _ = make_job(tiny_config(tmp_path, epochs=1, amp=True), in_process(Curious))
    run_passes(Trainer(job).run().passes)
    assert counted == {90: 2 + 1, 30: 2, 150: 1}


def test_means_are_taken_over_the_steps_that_had_a_value(tmp_path: Path) -> None:
    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        constant = target.features.sum() * 0 + 4.0
        return {"late": constant} if ctx.step % 10 >= 8 else {}

    job, _ = make_job(tiny_config(tmp_path), in_process(method_of(losses)))
    Trainer(job).run()
    assert job.folder.metrics.read_text().count('"fake/late": 4.0') == 5
