"""AdaBN in runs: what it undoes, what weights keep from moving, and what is predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.data import order
from daptkit.errors import Terminated, UsageError
from daptkit.host import LoadedMethod, load_methods
from daptkit.method import Method
from daptkit.model import load_model_folder, norm_layers
from daptkit.plugin import build_options
from daptkit.recipes import adapt, predict
from daptkit.testing import imports_torch, make_task
from daptkit.train import domains, moments
from daptkit.train.inference import SplitPasses
from daptkit.train.loop import Trainer
from daptkit_adabn.adabn import AdaBN
from daptkit_adabn.plugin import AdaBNOptions, daptkit_methods
from fakes import in_process, make_job, method_of, tiny_config, write_npz, write_weights

STANDARD = {"model": "daptkit_lenet"}
EPOCH = 12
"""Steps: of 90 images, 8 at a time."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_MIN_STEPS", EPOCH)


def adabn(**options: Any) -> LoadedMethod:
    """Return the method as a run loads it, with other defaults."""

    class Loaded(LoadedMethod):
        def load_factory(self) -> type[Method]:
            return AdaBN

        def create(self, given: Any, task: Any) -> Method:
            return AdaBN(AdaBNOptions(**options), task)

    return Loaded(spec=daptkit_methods(), package="daptkit-adabn", version="0.1.0")


class Weights(Method):
    """Owns class weights that a test sets."""

    values = (1.0, 1.0, 1.0)

    def class_weights(self) -> Tensor:
        return torch.tensor(self.values)


def weighing(*values: float) -> LoadedMethod:
    """Return a method that owns these class weights."""
    factory = type("Weighing", (Weights,), {"values": values})
    return in_process(factory, "weighing", roles=frozenset({"class_weights"}), trains="none")


def trainer(folder: Path, *methods: LoadedMethod, bn: bool = True, **values: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    options = {**(write_weights(folder) if bn else STANDARD), **values}
    return Trainer(make_job(tiny_config(folder, **options), *methods)[0])


def with_target(folder: Path, images: Any) -> None:
    """Write a target site whose training images are made from the source's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / "source.npz", seed=1)
    with np.load(folder / "source.npz") as stored:
        parts = dict(stored)
    parts["train_images"], parts["train_labels"] = images(
        parts["train_images"], parts["train_labels"]
    )
    np.savez(folder / "target.npz", **parts)


def test_a_scanner_is_undone_in_the_whole_network(tmp_path: Path) -> None:
    """Half the gain leaves the network as the source does; offsets would differ in the padding."""
    with_target(tmp_path, lambda x, y: (x // 2, y))
    with np.load(tmp_path / "target.npz") as stored:
        halves = dict(stored)["train_images"]
    with np.load(tmp_path / "source.npz") as stored:
        parts = dict(stored)
    np.savez(tmp_path / "source.npz", **{**parts, "train_images": 2 * halves})
    made = trainer(tmp_path, adabn(), mean=(0.0,))
    made.run()
    plain = SplitPasses(made.job.net, made.job.data, made.job.precision)
    ours = made._passes.now(delivered=True).of("target")[0]
    wanted = plain.of("source_train")[0]
    assert not torch.allclose(plain.of("target")[0], wanted, atol=0.05)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bn", [True, False])
def test_label_shift_alone_moves_nothing_under_weights(tmp_path: Path, bn: bool) -> None:
    """The target is the source with its first class three times and its last one once in two."""
    ratio = np.array([3.0, 1.0, 1.0])

    def repeated(x: Any, y: Any) -> Any:
        rows = np.repeat(np.arange(len(y)), ratio[y].astype(int))
        return x[rows], y[rows]

    with_target(tmp_path, repeated)
    gaps = {}
    for name, methods in {
        "weighted": (adabn(), weighing(*ratio)),
        "plain": (adabn(),),
    }.items():
        made = trainer(tmp_path, *methods, bn=bn, out=str(tmp_path / name))
        made.run()
        gaps[name] = _moved(made, bn)
    assert gaps["weighted"] < 1e-5
    assert gaps["plain"] > 20 * gaps["weighted"] and gaps["plain"] > 0.01


def _moved(made: Trainer, bn: bool) -> float:
    """Return the largest difference between what the two domains are normalised by."""
    if not bn:
        method = made.job.methods["adabn"]
        pairs = torch.stack([method.mean, method.deviation])
        return float(((pairs[:, 0] - pairs[:, 1]).abs() / method.deviation[0]).max())
    layers, found = norm_layers(made.job.net), made.alignment.statistics()
    assert found.keys() == layers.keys()
    return max(
        float(((mean - layers[n].mean).abs() / (layers[n].var + layers[n].eps).sqrt()).max())
        for n, (mean, _) in found.items()
    )


@pytest.mark.parametrize(("chunk", "at_once"), [(1, 0), (64, 0), (64, 100)])
def test_any_batch_size_finds_the_same(
    tmp_path: Path, chunk: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, adabn())
    made.module.eval()
    expected = made.alignment.statistics()
    monkeypatch.setattr(domains, "_CHUNK", chunk)
    monkeypatch.setattr(moments, "AT_ONCE", at_once)
    made.alignment.trained()
    found = made.alignment.statistics()
    assert found is not expected
    for name, (mean, var) in expected.items():
        deviation = var.sqrt() + 1e-3
        assert float(((found[name][0] - mean) / deviation).abs().max()) < 1e-4
        torch.testing.assert_close(found[name][1], var, rtol=1e-3, atol=1e-6)


def test_fewer_images_may_be_measured(tmp_path: Path) -> None:
    seen = {}
    for images in (2, 7, 512):
        made = trainer(tmp_path, adabn(images=images), out=str(tmp_path / str(images)))
        made.module.eval()
        seen[images] = made.alignment.statistics()
    first = next(iter(seen[2]))
    means = [seen[images][first][0] for images in (2, 7, 512)]
    assert not torch.equal(means[0], means[2]) and not torch.equal(means[1], means[2])
    torch.testing.assert_close(means[1], means[2], rtol=0.5, atol=0.5)


def test_no_strength_is_no_change(tmp_path: Path) -> None:
    made = trainer(tmp_path / "bn", adabn(strength=0.0))
    made.run()
    layers = norm_layers(made.job.net)
    for name, (mean, var) in made.alignment.statistics().items():
        assert torch.equal(mean, layers[name].mean.float())
        assert torch.equal(var, layers[name].var.float())
    frozen = trainer(tmp_path / "frozen", adabn(strength=0.0, scale="unit"), finetune="frozen")
    frozen.run()
    method = frozen.job.methods["adabn"]
    drawn = torch.randn(5, method.mean.shape[1])
    source, target = (method.align_features(drawn, domain) for domain in ("source", "target"))
    assert torch.equal(source, target) and not torch.equal(source, drawn)


@pytest.mark.parametrize("finetune", ["frozen", "full"])
@pytest.mark.parametrize("scale", ["unit", "source"])
def test_features_come_to_one_scale(tmp_path: Path, finetune: str, scale: str) -> None:
    """Mean 0 and deviation 1 at either site, or the source's own, which stay as they are."""
    made = trainer(
        tmp_path, adabn(scale=scale), bn=finetune == "frozen", finetune=finetune, epochs=1
    )
    made.run()
    passes = made._passes.now(delivered=True)
    aligned, trunks = {}, {}
    for name in ("source", "target"):
        split = "source_train" if name == "source" else name
        trunks[name] = passes.of(split, ("trunk",))[1]["trunk"]
        aligned[name] = made.alignment.sight(name).align(trunks[name]).double()
    varies = torch.stack([x.std(0) for x in trunks.values()]).amin(0) > 1e-2
    assert varies.sum() > 10
    for x in aligned.values():
        wanted = trunks["source"].double() if scale == "source" else None
        mean = torch.zeros_like(x[0]) if wanted is None else wanted.mean(0)
        spread = torch.ones_like(x[0]) if wanted is None else wanted.std(0, correction=0)
        torch.testing.assert_close(x.mean(0)[varies], mean[varies], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            x.std(0, correction=0)[varies], spread[varies], rtol=1e-3, atol=1e-3
        )
    if scale == "source":
        assert torch.equal(aligned["source"].float(), trunks["source"])
    assert not torch.allclose(trunks["source"].mean(0), trunks["target"].mean(0), atol=1e-2)


def batch_of(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def training() -> AdaBN:
    task = replace(make_task(), dims={"features": 6, "logits": 3, "trunk": 6})
    made = AdaBN(AdaBNOptions(scale="unit"), task)
    made._set_mode("batches")
    return made


def alone(x: Tensor) -> Tensor:
    return x


def test_batches_are_standardised_as_in_a_loop(training: AdaBN) -> None:
    x, w = batch_of(7, 1, 3.0), torch.linspace(0.2, 2.0, 7)
    found = training.align_batch(x, "source", w, alone)
    rows, weights = x.double().tolist(), w.double().tolist()
    for d in range(6):
        mean = sum(a * r[d] for a, r in zip(weights, rows, strict=True)) / sum(weights)
        squares = sum(a * (r[d] - mean) ** 2 for a, r in zip(weights, rows, strict=True))
        deviation = (squares / sum(weights)) ** 0.5
        for i, row in enumerate(rows):
            assert found[i, d].item() == pytest.approx((row[d] - mean) / deviation, abs=1e-3)


def test_the_target_comes_to_the_source_of_the_same_step(training: AdaBN) -> None:
    training.options = AdaBNOptions()
    source, target = batch_of(40, 5, 2.0), 3 * batch_of(30, 6) - 4
    ones = torch.ones(40)
    assert torch.equal(training.align_batch(source, "source", ones, alone), source)
    found = training.align_batch(target, "target", ones[:30], alone)
    torch.testing.assert_close(found.mean(0), source.mean(0), rtol=1e-3, atol=1e-4)
    spread = [x.std(0, correction=0) for x in (found, source)]
    torch.testing.assert_close(*spread, rtol=1e-3, atol=1e-3)
    unchanged = training.align_batch(source, "target", ones, alone)
    torch.testing.assert_close(unchanged, source, rtol=1e-4, atol=1e-4)


def test_two_processes_standardise_by_the_whole_batch(training: AdaBN) -> None:
    whole, w = batch_of(8, 2), torch.linspace(0.2, 2.0, 8)
    halves = {len(x): x for x in (whole[:5], whole[5:])}
    assert len(halves) == 2

    def gathered(x: Tensor) -> Tensor:
        return whole if x.dim() == 2 else w

    found = [training.align_batch(x, "source", w[:1], gathered) for x in halves.values()]
    torch.testing.assert_close(torch.cat(found), training.align_batch(whole, "source", w, alone))


def test_gradients_reach_the_trunk_and_see_the_moments(training: AdaBN) -> None:
    x = batch_of(6, 3).double().requires_grad_()
    # A shift of the whole batch, or a stretch, changes nothing: so does no gradient.
    out = training.align_batch(x, "target", torch.ones(6), alone)
    (grad,) = torch.autograd.grad((out * batch_of(6, 4)).sum(), x)
    torch.testing.assert_close(grad.sum(0), torch.zeros(6).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        (grad * x.detach()).sum(0), torch.zeros(6).double(), atol=1e-2, rtol=0
    )
    assert grad.abs().sum() > 0.1


@pytest.mark.parametrize("n", [1, 4])
def test_batches_without_spread_are_finite(training: AdaBN, n: int) -> None:
    x = torch.full((n, 6), 7.0, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = training.align_batch(x.bfloat16(), "target", torch.ones(n), alone)
    (grad,) = torch.autograd.grad(out.float().square().sum() + out.float().sum(), x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, torch.zeros_like(out))
    assert grad.isfinite().all()


@pytest.mark.parametrize("train", [True, False])
def test_running_statistics_are_the_sources(tmp_path: Path, train: bool) -> None:
    """Another target leaves them alone where each site is normalised by itself."""
    found = []
    for contrast in (0.6, 0.2):
        folder = tmp_path / str(contrast)
        folder.mkdir()
        write_npz(folder / "source.npz", seed=1)
        write_npz(folder / "target.npz", seed=2, contrast=contrast)
        made = trainer(folder, adabn(train=train))
        before = norm_layers(made.job.net)
        made.run()
        found.append(norm_layers(made.job.net))
        moved = [not torch.equal(layer.mean, found[-1][n].mean) for n, layer in before.items()]
        assert all(moved)
    same = all(torch.equal(layer.mean, found[1][name].mean) for name, layer in found[0].items())
    assert same is train


def test_a_source_only_model_never_sees_any_of_it(tmp_path: Path) -> None:
    options = {**write_weights(tmp_path), "guard": False}
    states = []
    for method in ("none", "adabn"):
        out = tmp_path / method
        adapt(tiny_config(tmp_path, method=method, out=str(out), **options))
        folder = out if method == "none" else out / "twin"
        states.append(load_model_folder(folder / "model").net.state_dict())
        assert (folder / "metrics.jsonl").exists()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


RUNS: dict[str, dict[str, Any]] = {
    "batchnorm": {"method": "adabn+bbse", "epochs": 2},
    "frozen": {"method": "adabn+coral+bbse", "finetune": "frozen"},
    "without batchnorm": {"method": "adabn+dann", "epochs": 2},
}


def configuration(folder: Path, name: str, **values: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    options = {**RUNS[name], "guard": False, **values}
    if name != "without batchnorm":
        options |= write_weights(folder)
    return tiny_config(folder, **options)


@pytest.mark.parametrize("name", RUNS)
def test_the_model_folder_predicts_what_the_run_did(tmp_path: Path, name: str) -> None:
    config = configuration(tmp_path, name)
    out = adapt(config).out
    again = predict(out, config.target, out=tmp_path / "again.csv", device="cpu")
    assert again.read_text() == (out / "predictions.csv").read_text()
    stored = load_model_folder(out / "model")
    roles = {"norm"} if name == "batchnorm" else {"features"}
    assert [(one.method, set(one.roles)) for one in stored.alignments] == [("adabn", roles)]
    # Statistics alone need no package.
    assert stored.meta["requires"] == ([] if name == "batchnorm" else ["daptkit-adabn"])
    other = predict(out, config.target, out=tmp_path / "o.csv", domain="source", device="cpu")
    assert other.read_text() != again.read_text()
    told = json.loads((out / "run.json").read_text())["methods"]["adabn"]
    assert told["statistics"] == ("norm" if name == "batchnorm" else "features")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("cut", [EPOCH, EPOCH + 5])
def test_a_cut_run_continues_bit_for_bit(tmp_path: Path, name: str, cut: int) -> None:
    def run(folder: Path, at: int | None) -> Any:
        def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            if ctx.step == at:
                raise Terminated("cut")
            return {"pull": (target.features.mean() - source.features.mean()).square()}

        config = configuration(folder, name, epochs=2)
        job, _ = make_job(config, adabn(strength=0.7), in_process(method_of(losses), "pull"))
        made = Trainer(job)
        if at is not None:
            save = made._train_step

            def step(*arguments: Any) -> None:
                if made.step == at:
                    made._save()
                save(*arguments)

            made._train_step = step  # type: ignore[method-assign]
        result = made.run()
        passes = result.passes.whole_target()[0]
        return made.module.state_dict(), passes, job.folder.metrics.read_bytes()

    whole = run(tmp_path / "whole", None)
    with pytest.raises(Terminated):
        run(tmp_path / "cut", cut)
    state, passes, metrics = run(tmp_path / "cut", None)
    assert metrics == whole[2]
    assert torch.equal(passes, whole[1])
    assert all(torch.equal(value, state[key]) for key, value in whole[0].items())


def test_specification_options_and_bounds() -> None:
    spec = daptkit_methods()
    assert spec.roles == {"features", "norm"}
    assert build_options(spec.options, {"train": "no"}).train is False
    for name, value in {"strength": 1.1, "images": 1, "scale": "both"}.items():
        with pytest.raises(UsageError, match=f"adabn.{name}"):
            build_options(spec.options, {name: value}, "adabn.")
    assert load_methods(["adabn"])[0].load_factory() is AdaBN


def test_torch_free_half_imports_no_torch() -> None:
    assert not imports_torch("daptkit_adabn.plugin")
