"""``--compile``: the same training by compiled code, and clear words where there is none.

Most tests compile with torch's ``eager`` backend, which traces, guards and compiles again like the
real one but runs the operations as they are: results must then be the same bit for bit.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit.cli.main import run
from daptkit.config import to_toml
from daptkit.errors import DaptkitError, Terminated, UsageError
from daptkit.method import Method
from daptkit.recipes import adapt, predict
from daptkit.train import compiling
from daptkit.train.compiling import check_compile
from daptkit.train.gather import batch_norm_over
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.twin import _key
from fakes import in_process, make_job, method_of, tiny_config, write_weights
from tiny_nets import tiny_net

CPU = torch.device("cpu")


class Backend:
    """Torch's backend ``eager``, which counts the graphs that were made and the calls of them."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def call(*values: Any) -> Any:
            self.calls += 1
            return graph.forward(*values)

        return call


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    made = Backend()
    monkeypatch.setattr(compiling, "_BACKEND", made)
    yield made
    torch.compiler.reset()


def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    raise RuntimeError("No working C++ compiler found in ('g++',)\nwith more lines")


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def pulling(kill_at: int | None = None, further: bool = False) -> type[Method]:
    """A method that may end its own process, and may read further images, of another number."""

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        read = ctx.forward(target.inputs[:5]) if further else target
        return {"pull": (read.features.mean() - source.features.mean()).square()}

    return method_of(losses)


def trained(folder: Path, factory: type[Method] | None = None, **values: Any) -> Any:
    """Return the metrics and weights of a run."""
    methods = (in_process(factory),) if factory else ()
    job, _ = make_job(tiny_config(folder, **values), *methods)
    Trainer(job).run()
    return job.folder.metrics.read_bytes(), job.net.state_dict()


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    assert list(found[1]) == list(expected[1])
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


CASES: dict[str, dict[str, Any]] = {
    "split": {"model": "test_resnet", "bn": "split"},
    "frozen statistics": {"model": "test_resnet", "bn": "frozen"},
    "gradual": {"model": "test_resnet", "finetune": "gradual", "epochs": 3, "lr": 0.0},
    "bfloat16": {"model": "daptkit_lenet", "amp": True, "dropout": 0.2},
}


@pytest.mark.parametrize("case", list(CASES))
def test_compiled_code_trains_the_same(tmp_path: Path, backend: Backend, case: str) -> None:
    """Modes, momenta, precision and what is trained change; the code must follow each of them."""
    values = {**write_weights(tmp_path, CASES[case]["model"]), **CASES[case]}
    method = pulling(further=case == "split")
    plain = trained(tmp_path, method, **values, out=str(tmp_path / "plain"))
    assert backend.calls == 0
    found = trained(tmp_path, method, **values, compile=True, out=str(tmp_path / "compiled"))
    assert_same(found, plain)
    # One graph for each size, momentum or set of trained stages, and no step without.
    forwards, unfrozen = 3 if case == "split" else 1, plain[0].count(b'"unfreeze"')
    assert backend.calls == 50 * values.get("epochs", 1) * forwards
    assert backend.graphs == forwards + unfrozen
    assert unfrozen == (case == "gradual")


def test_a_terminated_run_continues_bit_for_bit(tmp_path: Path, backend: Backend) -> None:
    values = {"dropout": 0.2, "aug": "digits", "compile": True}
    whole = trained(tmp_path, pulling(), **values, out=str(tmp_path / "whole"))
    with pytest.raises(Terminated):
        trained(tmp_path, pulling(31), **values)
    assert_same(trained(tmp_path, pulling(), **values), whole)


def test_batchnorm_over_processes_is_compiled_with_the_gather(backend: Backend) -> None:
    """Code that was made without a gather must not serve steps with one, nor the other way."""
    net = tiny_net().train()
    twin = copy.deepcopy(net)
    fast = compiling._compiled(twin.backbone.__call__)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def gather(x: Tensor) -> Tensor:
        return torch.cat([x, 0.5 * x + 0.1])

    for step in (None, gather, None):
        with batch_norm_over(step):
            (net(images)[0] - twin(images, backbone=fast)[0]).abs().sum().backward()
    for one, other in zip(net.state_dict().items(), twin.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert backend.graphs == 2


def test_whole_runs_predict_as_the_delivered_model_does(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    config = tiny_config(tmp_path, method="dann", compile=True)
    adapt(config)
    assert backend.calls == 101, "a trial, the twin and the adapted model"
    made = (tmp_path / "run" / "predictions.csv").read_bytes()
    before = backend.calls
    predict(config.out, config.target, out=str(tmp_path / "again.csv"))
    assert (tmp_path / "again.csv").read_bytes() == made
    assert backend.calls == before


def test_a_layer_of_the_backbone_is_never_missing(backend: Backend) -> None:
    net = tiny_net().train()
    fast = compiling._compiled(net.backbone.__call__)
    images = torch.rand(2, 3, 32, 32)
    net(images, backbone=fast)
    _, taps = net(images, ("features", "backbone.layer1"), backbone=fast)
    assert taps["backbone.layer1"].shape[0] == 2
    assert backend.calls == 1


@pytest.mark.parametrize("tap", ["backbone", "backbone.layer1"])
def test_a_method_that_reads_the_backbone_is_refused(tmp_path: Path, tap: str) -> None:
    class Deep(Method):
        layers = ("features", tap)

    config = tiny_config(tmp_path, compile=True)
    with pytest.raises(UsageError) as caught:
        check_compile(config, [in_process(Deep)], CPU, SilentReporter())
    assert str(caught.value) == (
        f"method 'fake' (daptkit-fake 1.2) reads the layer '{tap}', which a compiled backbone does"
        " not show; leave --compile out."
    )
    check_compile(tiny_config(tmp_path), [in_process(Deep)], CPU, SilentReporter())


def test_a_frozen_run_says_that_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", broken)
    lines = Lines()
    values = {**write_weights(tmp_path), "finetune": "frozen", "compile": True}
    config = tiny_config(tmp_path, **values)
    check_compile(config, [], CPU, lines)
    assert lines.said == [
        "--compile: a frozen run trains on cached features, so there is no backbone to compile"
    ]
    job, _ = make_job(config)
    assert Trainer(job).module.backbone is None
    # Beside it, the network from random weights trains on images.
    with pytest.raises(DaptkitError, match="cannot compile"):
        check_compile(tiny_config(tmp_path, **values, from_scratch=True), [], CPU, lines)


def test_without_a_compiler_one_line_says_so_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", broken)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(tiny_config(tmp_path)))
    assert run(["adapt", "--config", str(file), "--compile"]) == 1
    said = capsys.readouterr().err
    (line,) = [text for text in said.splitlines() if "cannot compile" in text]
    assert "No working C++ compiler found in ('g++',)" in line
    assert line.endswith("leave --compile out.")
    assert "Traceback" not in said and "with more lines" not in said and "reading" not in said


def test_a_step_that_cannot_be_compiled_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", broken)
    with pytest.raises(DaptkitError, match="--compile: torch cannot compile") as caught:
        trained(tmp_path, compile=True)
    assert caught.value.exit_code == 1
    torch.compiler.reset()


def test_what_the_network_refuses_keeps_its_own_words(tmp_path: Path, backend: Backend) -> None:
    values = {**write_weights(tmp_path), "batch_size": 1, "compile": True}
    with pytest.raises(UsageError, match="--batch-size 1 is too small"):
        trained(tmp_path, **values)


def test_the_option_counts_for_twin_and_resume(tmp_path: Path, backend: Backend) -> None:
    keys = []
    for on in (False, True):
        _, maker = make_job(tiny_config(tmp_path, compile=on))
        keys.append(_key(maker))
    assert keys[0] != keys[1]
    adapt(tiny_config(tmp_path))
    with pytest.raises(UsageError, match=r"started with another --compile;"):
        adapt(tiny_config(tmp_path, compile=True, resume=True))


@pytest.mark.benchmark
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_the_real_compiler_trains_nearly_the_same_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    values = {"aug": "digits", "dropout": 0.2}
    plain = trained(tmp_path, pulling(), **values, out=str(tmp_path / "plain"))
    values["compile"] = True
    whole = trained(tmp_path, pulling(), **values, out=str(tmp_path / "whole"))
    with pytest.raises(Terminated):
        trained(tmp_path, pulling(31), **values)
    assert_same(trained(tmp_path, pulling(), **values), whole)
    assert list(whole[1]) == list(plain[1])
    for name, value in plain[1].items():
        torch.testing.assert_close(whole[1][name], value, rtol=1e-3, atol=1e-4)
