"""Which epoch's model is delivered: chosen without target labels, whatever interrupts the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from daptkit.assess import ScoreInputs, score_inputs
from daptkit.assess.scores import SCORES, score_values
from daptkit.cli.main import run as command
from daptkit.config import AdaptConfig
from daptkit.errors import PluginError
from daptkit.host.validate import OWN_SCORES
from daptkit.method import Method
from daptkit.report.restore import restore
from daptkit.run import RunFolder
from daptkit.train import adaptation, loop, scoring, verdict
from daptkit.train.adaptation import run_adaptation
from daptkit.train.checkpoint import read_checkpoint
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.scoreset import AUTO, LAST, PluginScore, ScoreSet
from daptkit.train.selection import UNREADABLE, Candidate, Prior, Rule, Selection
from fakes import in_process, make_job, tiny_config, write_npz

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One source-only model for all tests, and a verdict that rests on few resamples."""
    hurry(cache, monkeypatch)


def hurry(cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("DAPTKIT_CACHE", str(cache))
    patch.setattr(verdict, "N_BOOTSTRAP", 20)
    patch.setattr(verdict, "PERMUTATIONS", 39)


def inputs(sure: float = 3.0, *, one_class: bool = False, k: int = 3) -> ScoreInputs:
    """A model that is right on 60 source images, and on 60 of the target unless it collapsed."""
    y = np.arange(60) % k
    z = sure * np.eye(k)[y]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    collapsed = np.tile(np.eye(k)[:1] * 0.97 + 0.01, (60, 1))
    return score_inputs(collapsed if one_class else p, p, y, seed=0)


def rule(name: str = AUTO, **values: Any) -> Rule:
    given = {"higher_is_better": True, "kind": "covariate", "prior": None, "reference": inputs()}
    return Rule(name=name, **{**given, **values})


def selection_of(*found: ScoreInputs | None, **values: Any) -> Selection:
    made = Selection(rule(**values))
    for epoch, one in enumerate(found, 1):
        scores = dict.fromkeys(SCORES, np.nan) if one is None else score_values(one)
        made.add(epoch, scores, one)
    return made


def test_epochs_of_a_method_that_raises_confidence_go_by_the_error_at_the_source() -> None:
    assert {n for n, w in rule(raises_confidence=True).weights.items() if w} == {"iwcv"}
    assert {n for n, w in rule().weights.items() if w} > {"iwcv", "entropy"}
    assert rule("entropy", raises_confidence=True).weights == {"entropy": 1.0}


def test_a_collapsed_epoch_is_never_chosen() -> None:
    epochs = (inputs(2.0), inputs(3.0), inputs(one_class=True))
    # By the score alone it would be: nothing is denser than one point.
    snd = [score_values(one)["snd"] for one in epochs]
    assert int(np.argmax(snd)) == 2
    for name in (AUTO, "snd", "entropy"):
        higher = name != "entropy"
        choice = selection_of(*epochs, name=name, higher_is_better=higher).choose()
        assert choice.epoch < 3, name
        assert "against the last epoch: nearly every target image" in choice.why


def test_a_collapse_that_the_prior_explains_is_none() -> None:
    low, high = np.array([0.9, 0.0, 0.0]), np.array([1.0, 0.05, 0.05])
    prior = Prior(estimate=np.array([0.96, 0.02, 0.02]), low=low, high=high)
    found = selection_of(inputs(one_class=True), prior=prior, name="snd")
    assert not [v for v in found.candidates[0].vetoes if "same class" in v]
    # Information maximisation compares with that prior, not with an even mixture.
    auto = selection_of(inputs(one_class=True), prior=prior)
    assert auto.candidates[0].scores["im"] > score_values(inputs(one_class=True))["im"] + 0.5


def test_the_last_epoch_wins_where_nothing_speaks_for_another() -> None:
    for name in (AUTO, "snd"):
        equal = selection_of(inputs(), inputs(), inputs(), name=name)
        assert equal.choose().epoch == 3
        assert equal.needed() == {3}
        vetoed = selection_of(inputs(one_class=True), inputs(one_class=True), name=name).choose()
        assert vetoed.epoch == 2
        assert "no epoch can be trusted (nearly every target image" in vetoed.why
        undefined = Selection(rule(name))
        for epoch in (1, 2):
            undefined.add(epoch, dict.fromkeys(SCORES, np.nan), inputs())
        assert undefined.choose().epoch == 2
        assert undefined.choose().why == "no score that counts is defined, so it is the last"
    broken = selection_of(inputs(), None).choose()
    assert (broken.epoch, broken.candidates[1].vetoes) == (1, ("its outputs are not finite",))


@pytest.mark.parametrize("name", [AUTO, "snd"])
def test_the_chosen_model_is_among_those_that_were_kept_all_along(name: str) -> None:
    """Scores are drawn coarsely, so that there are ties, and some are not defined."""
    rng = np.random.default_rng(0)
    fewer = 0
    for _ in range(200):
        made, dropped = Selection(rule(name)), set[int]()
        for epoch in range(1, 9):
            scores = {s: float(rng.integers(0, 5)) for s in SCORES}
            if rng.random() < 0.2:
                scores["iwcv"] = np.nan
            vetoes = ("no",) if rng.random() < 0.2 else ()
            one = Candidate(epoch=epoch, scores=scores, vetoes=vetoes, source_accuracy=1.0)
            made.candidates.append(one)
            dropped |= {*range(1, epoch + 1)} - made.needed()
        choice = made.choose()
        assert choice.epoch == 8 or choice.epoch not in dropped
        fewer += len(made.needed())
        # A lost model gives way to another one.
        again = made.choose(frozenset({choice.epoch}))
        assert again.epoch != choice.epoch or "can be trusted" in again.why
        assert UNREADABLE in again.candidates[choice.epoch - 1].vetoes
    assert fewer < 200 * 6


class LateCollapse(Method):
    """Pulls all target images to one class, in the last of three epochs alone."""

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        wanted = torch.zeros(len(target), dtype=torch.int64)
        if ctx.progress < 2 / 3:
            return {}
        return {"one": 20 * functional.cross_entropy(target.logits, wanted)}


class Counting(LateCollapse):
    """Holds state of its own, and remembers what it was handed at the end."""

    seen: list[Any] = []  # noqa: RUF012 - of the class on purpose

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.register_buffer("epochs", torch.zeros(()))

    def on_epoch_end(self, ctx: Any) -> None:
        self.epochs += 1

    def on_fit_end(self, ctx: Any) -> None:
        counts = torch.bincount(ctx.predict("target").logits.argmax(1), minlength=3)
        Counting.seen.append((float(self.epochs), int(counts.max()), len(counts)))


def config_of(folder: Path, **values: Any) -> AdaptConfig:
    given = {"epochs": 3, "guard": False, "method": "fake", "select": AUTO, "dropout": 0.2}
    return tiny_config(folder, **{**given, **values})


def adapt_with(
    config: AdaptConfig, method: type[Method], monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFolder, dict[str, Any], str]:
    monkeypatch.setattr(adaptation, "load_methods", lambda names: [in_process(method)])
    result = run_adaptation(config, SilentReporter()).result
    run = RunFolder(result.out)
    return run, json.loads(run.record.read_text()), result.summary


def model(run: RunFolder) -> bytes:
    return (run.model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> tuple[RunFolder, dict[str, Any], str]:
    """A run whose last epoch collapses, and what it recorded."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        hurry(cache, patch)
        return adapt_with(config_of(folder), Counting, patch)


def test_a_run_delivers_the_chosen_epoch(
    tmp_path: Path, whole: tuple[RunFolder, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record, summary = whole
    selection = record["figures"]["selection"]
    chosen = selection["epoch"]
    assert chosen < 3 == selection["of"]
    assert selection["epochs"][2]["vetoes"]
    assert f"epoch, without target labels: {chosen} of 3 by auto: best weighted" in summary
    assert not record["figures"]["collapse"]["collapsed"]
    # The method ends with the model that is delivered, and its own state of that epoch.
    epochs, most, _ = Counting.seen[-1]
    assert (epochs, most < 0.9 * 90) == (chosen, True)
    # Its model is the one that was kept, and the only one left.
    assert [p.name for p in run.checkpoints.glob("epoch-*")] == [f"epoch-{chosen:05d}.ckpt"]
    # Without --select the same run ends with the collapsed one, and its metrics are the same.
    last, plain, text = adapt_with(config_of(tmp_path, select=LAST), Counting, monkeypatch)
    assert plain["figures"]["selection"] is None
    assert "epoch, without" not in text
    assert plain["figures"]["collapse"]["collapsed"]
    assert last.metrics.read_bytes() == run.metrics.read_bytes()
    assert model(last) != model(run)
    assert not list(last.checkpoints.glob("epoch-*"))
    # The source-only model is that of the last epoch, whatever is chosen.
    assert model(last.twin) == model(run.twin)
    assert last.twin.metrics.read_bytes() == run.twin.metrics.read_bytes()


def test_every_score_is_in_the_metrics(whole: tuple[RunFolder, dict[str, Any], str]) -> None:
    run, record, _ = whole
    for folder in (run, run.twin):
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        found = [line["values"] for line in lines if line["kind"] == "epoch"]
        assert len(found) == 3
        for values in found:
            assert {f"score/{name}" for name in SCORES} <= set(values)
            assert all(isinstance(values[f"score/{name}"], float) for name in SCORES)
    chosen = record["figures"]["selection"]["epochs"][0]["scores"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    first = next(line["values"] for line in lines if line["kind"] == "epoch")
    assert first["score/snd"] == chosen["snd"]


def test_target_labels_have_no_part_in_the_choice(
    tmp_path: Path, whole: tuple[RunFolder, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record, _ = whole
    config = config_of(tmp_path)
    with np.load(config.target) as file:
        arrays = dict(file)
    for name in [name for name in arrays if name.endswith("labels")]:
        arrays[name] = np.random.default_rng(5).permutation(arrays[name])
    np.savez(tmp_path / "target.npz", **arrays)
    shuffled, again, _ = adapt_with(config, Counting, monkeypatch)
    assert again["figures"]["selection"] == record["figures"]["selection"]
    assert model(shuffled) == model(run)


def dying(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run die once: as its second epoch is saved, or when everything is trained."""
    saves, real = [], loop.save_checkpoint

    def save(folder: Path, state: dict[str, Any]) -> None:
        saves.append(state["step"])
        if where == "before" and saves.count(100) and "twin" not in folder.parts:
            # The model of the epoch is kept by now, and no checkpoint knows of it.
            monkeypatch.setattr(loop, "save_checkpoint", real)
            raise KeyboardInterrupt
        real(folder, state)

    def select(self: Trainer) -> Any:
        if self.job.methods:
            monkeypatch.setattr(Trainer, "_select", chosen)
            raise KeyboardInterrupt
        return chosen(self)

    chosen = Trainer._select
    if where == "after":
        monkeypatch.setattr(Trainer, "_select", select)
    monkeypatch.setattr(loop, "save_checkpoint", save)


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_interrupted_run_delivers_the_same(
    tmp_path: Path,
    whole: tuple[RunFolder, dict[str, Any], str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    run, record, _ = whole
    config = config_of(tmp_path)
    with monkeypatch.context() as patch:
        dying(where, patch)
        with pytest.raises(KeyboardInterrupt):
            adapt_with(config, Counting, patch)
    left = RunFolder(config.out).checkpoints
    (left / ".epoch-00002.ckpt.0123").write_bytes(b"unfinished")
    for _ in range(2):
        # A finished run that is continued delivers the same once more.
        again, found, _ = adapt_with(replace(config, resume=True), Counting, monkeypatch)
        assert again.metrics.read_bytes() == run.metrics.read_bytes()
        assert model(again) == model(run)
        assert again.predictions.read_bytes() == run.predictions.read_bytes()
        assert found["figures"]["selection"] == record["figures"]["selection"]
    assert not list(left.glob(".epoch-*"))


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from daptkit.train import checkpoint, scoring
from test_train_select import Counting, adapt_with, config_of

def die(path, state):
    parts = checkpoint.pack_state(state)
    with checkpoint.atomic_file(path) as file:
        file.write(parts[0])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

scoring.write_checkpoint = die
with pytest.MonkeyPatch.context() as patch:
    adapt_with(config_of(Path(sys.argv[1])), Counting, patch)
"""


def test_a_run_killed_while_it_keeps_a_model_delivers_the_same(
    tmp_path: Path, whole: tuple[RunFolder, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record, _ = whole
    config = config_of(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = RunFolder(config.out).checkpoints
    assert list(left.glob(".epoch-*"))
    again, found, _ = adapt_with(replace(config, resume=True), Counting, monkeypatch)
    assert model(again) == model(run)
    assert found["figures"]["selection"] == record["figures"]["selection"]
    assert not list(left.glob(".epoch-*"))


def test_a_lost_model_gives_way_to_the_next_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    run, record, _ = adapt_with(config, Counting, monkeypatch)
    (kept,) = run.checkpoints.glob("epoch-*")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    _, again, _ = adapt_with(replace(config, resume=True), Counting, monkeypatch)
    selection = again["figures"]["selection"]
    lost = record["figures"]["selection"]["epoch"]
    assert selection["epochs"][lost - 1]["vetoes"] == [UNREADABLE]
    # Other models were removed when the run was done.
    assert selection["epoch"] == 3
    assert "no epoch can be trusted" in selection["why"]


def test_cross_fitted_models_are_as_far_trained(tmp_path: Path) -> None:
    """What a job that ends after an epoch has is what the whole one had then."""
    config = config_of(tmp_path)
    job, _ = make_job(config, in_process(Counting))
    reference = scoring.EpochInputs(job.data, 0).of(
        loop.TrainingPasses(job.net, job.data, job.precision).now(delivered=False), torch.ones(3)
    )
    assert reference is not None
    trainer = Trainer(replace(job, rule=rule("snd", reference=reference)))
    kept: dict[int, dict[str, Any]] = {}
    after = trainer.scores.after_epoch

    def watched(epoch: int, *given: Any, **more: Any) -> dict[str, float]:
        kept[epoch] = {n: value.clone() for n, value in trainer.module.state_dict().items()}
        return after(epoch, *given, **more)

    trainer.scores.after_epoch = watched  # type: ignore[method-assign]
    trainer.run()
    short, _ = make_job(config, in_process(Counting), out=tmp_path / "short")
    part = Trainer(replace(short, stop_epoch=2, folder=None))
    part.run()
    assert part.step == 100
    state = part.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept[2].items())


def test_a_run_that_is_measured_again_is_that_of_the_chosen_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen run whose cross-fitted logits are lost makes them anew, as far trained as before."""
    trunk = run_adaptation(tiny_config(tmp_path), SilentReporter()).result.out / "model"
    stops: list[int | None] = []
    start = Trainer.__init__

    def watched(self: Trainer, job: Any) -> None:
        stops.append(job.stop_epoch if job.folder is None else -1)
        start(self, job)

    monkeypatch.setattr(Trainer, "__init__", watched)
    config = tiny_config(
        tmp_path,
        init_from=str(trunk),
        finetune="frozen",
        aug="auto",
        method="coral",
        method_options={},
        epochs=2,
        select="entropy",
        guard=False,
        out=str(tmp_path / "frozen"),
    )
    record = run_adaptation(config, SilentReporter()).record
    chosen = record["figures"]["selection"]["epoch"]
    of_methods = stops[-5:]
    assert set(of_methods) == {chosen}
    (tmp_path / "frozen" / "held_out.safetensors").unlink()
    stops.clear()
    restore(RunFolder(tmp_path / "frozen"), SilentReporter(), device="cpu", workers=1)
    assert set(stops) == {chosen}


def test_an_unknown_score_is_a_mistake_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    sites = ["--source", config.source[0], "--target", config.target, "--out", config.out]
    code = command(["adapt", *sites, "--model", "daptkit_lenet", "--select", "entropi"])
    said = capsys.readouterr().err
    assert code == 2
    assert "--select is one of last, auto, im, entropy, snd, bnm, iwcv, atc" in said
    assert "Did you mean 'entropy'?" in said
    assert len(said.strip().splitlines()) == 1
    assert not Path(config.out).exists()


def test_without_a_method_the_last_epoch_is_taken_and_the_run_says_so(tmp_path: Path) -> None:
    lines: list[str] = []

    class Listener(SilentReporter):
        def line(self, text: str) -> None:
            lines.append(text)

    done = run_adaptation(tiny_config(tmp_path, select=AUTO), Listener())
    assert done.record["figures"]["selection"] is None
    assert [line for line in lines if line.startswith("--select chooses among epochs of a method")]


def test_names_of_own_scores_are_no_plugins() -> None:
    assert {LAST, AUTO, *SCORES} == OWN_SCORES


def test_a_plugins_score_that_fails_costs_a_line() -> None:
    lines: list[str] = []

    def score(function: Any, name: str = "mine") -> PluginScore:
        origin = f"score '{name}' of package fake 1.0"
        return PluginScore(name=name, origin=origin, function=function, higher_is_better=False)

    def meddling(found: ScoreInputs) -> float:
        found.target_posterior[:] = 0
        return 0.0

    def drawing(found: ScoreInputs) -> float:
        return float(np.random.random() + torch.rand(()))  # noqa: NPY002

    made = inputs()
    own = score_values(made)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.random(), torch.rand(())  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    scores = ScoreSet(
        [
            score(lambda _: np.float32(0.5), "good"),
            score(lambda _: "high", "text"),
            score(meddling, "meddling"),
            score(lambda _: sys.exit(3), "leaving"),
            score(drawing, "drawing"),
        ],
        log=lines.append,
    )
    for _ in range(2):
        found = scores.values(made)
        assert set(found) == {*SCORES, "good", "drawing"}
        np.testing.assert_equal({name: found[name] for name in SCORES}, own)
    assert [line.partition(" is left out")[0][-24:] for line in lines] == [
        f"'{name}' of package fake 1.0"[-24:] for name in ("text", "meddling", "leaving")
    ]
    # What a score draws is not taken from the run.
    assert (np.random.random(), torch.rand(())) == expected  # noqa: NPY002
    with pytest.raises(PluginError, match="named by --select: it returned str"):
        ScoreSet([score(lambda _: "high")], needed="mine").values(made)


def test_only_a_sample_of_large_sites_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in every epoch; a whole pass that is known serves for them."""
    monkeypatch.setattr(scoring, "SAMPLE", 20)
    write_npz(tmp_path / "source.npz", seed=1)
    write_npz(tmp_path / "target.npz", seed=2)
    job, _ = make_job(tiny_config(tmp_path))
    found = scoring.EpochInputs(job.data, 0)
    passes = loop.TrainingPasses(job.net, job.data, job.precision)
    fresh = found.of(passes.now(delivered=False), torch.ones(3))
    whole = passes.now(delivered=True)
    known = found.of(whole, torch.ones(3))
    assert fresh is not None
    assert known is not None
    assert len(fresh.target_posterior) == len(fresh.source_posterior) == 20
    np.testing.assert_allclose(fresh.target_posterior, known.target_posterior, atol=1e-6)
    np.testing.assert_array_equal(fresh.target_groups, known.target_groups)
    assert read_checkpoint(tmp_path / "source.npz") is None
