"""Runs whose images a method changes: two views of the data, and the same at prediction."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aligners import METHOD, install_shade
from daptkit.cli.main import run as command
from daptkit.data import AlignedImages, to_float
from daptkit.errors import DaptkitError, PluginError
from daptkit.model import load_model_folder
from daptkit.recipes import evaluate, predict
from daptkit.report.levels import image_levels
from daptkit.report.restore import restore
from daptkit.report.stages import stage_divergences
from daptkit.run import RunFolder
from daptkit.train.adaptation import Trained, run_adaptation
from daptkit.train.progress import SilentReporter
from fakes import tiny_config, write_weights


class Lines(SilentReporter):
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def judged(*, delivers_twin: bool) -> Any:
    """Return what stands for the judgement, which takes longer than all else of such a run."""
    verdict = SimpleNamespace(delivers_twin=delivers_twin, to_json=lambda: None)
    return lambda *_, **__: verdict


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("daptkit.train.models.judge_run", judged(delivers_twin=False))


def run(folder: Path, reporter: SilentReporter | None = None, **values: Any) -> Trained:
    config = tiny_config(folder, **{"method": "shade", "guard": False, **values})
    return run_adaptation(config, reporter or SilentReporter())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def probabilities(path: Path) -> np.ndarray:
    return np.array([[float(row[f"p_{c}"]) for c in ("0", "1", "2")] for row in rows_of(path)])


def frozen(folder: Path, **values: Any) -> dict[str, Any]:
    return {**write_weights(folder), "finetune": "frozen", "in_chans": 1, **values}


@pytest.mark.parametrize("kind", ["full", "frozen", "views"])
def test_the_twin_sees_the_images_as_they_are(site: Any, tmp_path: Path, kind: str) -> None:
    install_shade(site)
    views = {"trunk_views": 2, "aug": "digits"} if kind == "views" else {}
    values = {} if kind == "full" else frozen(tmp_path, **views)
    trained = run(tmp_path, **values)
    plain = run(tmp_path, method="none", out=str(tmp_path / "plain"), **values)
    assert trained.adapted is not None
    np.testing.assert_array_equal(
        trained.twin.passes.target_logits, plain.twin.passes.target_logits
    )
    raw, seen = trained.prepared.data, trained.adapted.fit.passes.data
    assert seen.source is raw.source
    assert isinstance(seen.target.images, AlignedImages)
    assert seen.target.images.in_memory == (kind == "full")
    assert seen.from_trunk == (kind != "full")
    # What the model saw of the target has the source's mean and spread.
    rows = seen.target_rows
    source, before, after = (
        to_float(images.batch(chosen))
        for images, chosen in (
            (raw.source.images, raw.train_rows),
            (raw.target.images, rows),
            (seen.target.images, rows),
        )
    )
    assert abs(float(before.std() - source.std())) > 0.02
    assert float(after.mean()) == pytest.approx(float(source.mean()), abs=0.01)
    assert float(after.std()) == pytest.approx(float(source.std()), abs=0.01)
    if kind == "views":
        assert seen.target.views is not None and raw.target.views is not None
        assert not torch.equal(seen.target.views.features, raw.target.views.features)
    if seen.target.trunk is not None and raw.target.trunk is not None:
        assert not torch.equal(seen.target.trunk, raw.target.trunk)


def test_the_model_folder_predicts_what_the_run_did(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    trained = run(tmp_path)
    out, target = Path(trained.config.out), trained.config.target
    predict(out, target, out=tmp_path / "again.csv", device="cpu")
    assert (tmp_path / "again.csv").read_text() == (out / "predictions.csv").read_text()
    # Alone, without its run; the cut of what the model sees is in its own folder.
    predict(out / "model", target, out=tmp_path / "alone.csv", device="cpu")
    assert (tmp_path / "alone.csv").read_text() == (out / "predictions.csv").read_text()
    # Images of the source stay as they are.
    model = load_model_folder(out / "model")
    seen = predict(out, target, out=tmp_path / "source.csv", domain="source", device="cpu")
    images = trained.prepared.data.target.images.batch(np.arange(5))
    logits = model.net(images.float() / 255)[0]
    expected = logits.softmax(1).argmax(1).tolist()
    assert [int(row["prediction"]) for row in rows_of(seen)[:5]] == expected
    # The twin has no alignment, and predicts the images as they are.
    assert load_model_folder(out / "twin" / "model").alignments == ()
    scores = evaluate(out, target, split="test", n_bootstrap=0, device="cpu")
    predicted = [r["prediction"] for r in rows_of(out / "predictions.csv") if r["split"] == "test"]
    labels = np.load(target)["test_labels"]
    right = np.mean([int(p) == label for p, label in zip(predicted, labels, strict=True)])
    assert scores["accuracy"]["value"] == pytest.approx(right)


def test_without_the_package_prediction_is_one_line(
    site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shade(site)
    trained = run(tmp_path)
    monkeypatch.setenv("DAPTKIT_DISABLE", "shade")
    images = ["--images", trained.config.target, "--out", str(tmp_path / "p.csv")]
    assert command(["predict", trained.config.out, *images]) == 4
    told = " ".join(capsys.readouterr().err.split())
    assert "the model needs method 'shade' of fake-shade 1.3 at prediction" in told
    assert told.endswith("Install it: pip install fake-shade")
    assert "Traceback" not in told
    assert command(["evaluate", trained.config.out, "--data", trained.config.target]) == 4
    assert not (tmp_path / "p.csv").exists()
    # The source-only model needs nothing.
    assert command(["predict", str(Path(trained.config.out) / "twin"), *images]) == 0


def test_run_json_says_what_was_done(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    trained = run(tmp_path)
    record = json.loads((Path(trained.config.out) / "run.json").read_text())
    images = record["images"]
    assert (images["method"], images["package"], images["version"]) == (
        "shade",
        "fake-shade",
        "1.3",
    )
    assert images["mean_change"]["source"] == 0.0
    assert 0.01 < images["mean_change"]["target"] < 0.5
    assert record["methods"]["shade"]["source_mean"] > record["methods"]["shade"]["target_mean"]
    assert run(tmp_path, method="none", out=str(tmp_path / "plain")).record["images"] is None


def test_a_method_may_change_the_source_too(site: Any, tmp_path: Path) -> None:
    install_shade(site, changes_source=True)
    trained = run(tmp_path)
    assert trained.adapted is not None
    raw, seen = trained.prepared.data, trained.adapted.fit.passes.data
    assert isinstance(seen.source.images, AlignedImages)
    assert trained.record["images"]["mean_change"]["source"] > 0.0
    rows = np.arange(4)
    assert not torch.equal(seen.source.images.batch(rows), raw.source.images.batch(rows))
    out = Path(trained.config.out)
    predict(out, trained.config.source[0], out=tmp_path / "s.csv", domain="source", device="cpu")
    found = probabilities(tmp_path / "s.csv")[raw.val_rows]
    expected = trained.adapted.rule.posterior(trained.adapted.passes.val_logits, "source")
    np.testing.assert_allclose(found, expected, atol=2e-6)


WATCHER = (
    METHOD
    + """
    def losses(self, source, target, ctx):
        self.steps.append((target.inputs.mean().item(), ctx.step))
        return {}

    steps = []
    seen = {}

    def on_fit_start(self, ctx):
        self.seen["images"] = ctx.images("target", 64)
        self.seen["twin"] = ctx.source_only("target").logits
        self.seen["own"] = ctx.predict("target").logits
"""
)


def test_methods_see_the_changed_images(site: Any, tmp_path: Path) -> None:
    install_shade(site, method=WATCHER)
    trained = run(tmp_path)
    from plugin_shade_method import Shade  # type: ignore[import-not-found]

    data = trained.prepared.data
    source = float(to_float(data.source.images.batch(data.train_rows)).mean())
    raw = float(to_float(data.target.images.batch(data.target_rows)).mean())
    assert abs(source - raw) > 0.015
    means = [mean for mean, _ in Shade.steps]
    assert np.mean(means) == pytest.approx(source, abs=0.004)
    assert float(Shade.seen["images"].mean()) == pytest.approx(source, abs=0.004)
    # The source-only model, asked by a method, looks at the images that the method sees.
    inside = torch.from_numpy(trained.twin.passes.target_logits[data.target_rows]).float()
    assert not torch.allclose(Shade.seen["twin"], inside, atol=1e-3)
    assert Shade.seen["twin"].shape == Shade.seen["own"].shape


def test_features_of_changed_images_are_cached_by_themselves(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    runs = {}
    for name, strength in (("one", 1.0), ("two", 0.3), ("again", 1.0)):
        values = frozen(tmp_path, method_options={"shade": {"strength": strength}})
        lines = Lines()
        trained = run(tmp_path, lines, out=str(tmp_path / name), **values)
        assert trained.adapted is not None
        runs[name] = trained.adapted.fit.passes.data.target.trunk, lines.lines
    assert torch.equal(runs["one"][0], runs["again"][0])
    assert not torch.equal(runs["one"][0], runs["two"][0])
    told = [line for line in runs["again"][1] if line.startswith("trunk features")]
    assert told == [
        "trunk features: 2 of 2 domains from the cache, 0 computed",
        "trunk features: 1 of 1 domains from the cache, 0 computed",
    ]
    told = [line for line in runs["two"][1] if line.startswith("trunk features")]
    assert told[1] == "trunk features: 0 of 1 domains from the cache, 1 computed"


def test_a_restored_run_sees_what_the_run_saw(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    trained = run(tmp_path, **frozen(tmp_path))
    found = restore(RunFolder(trained.config.out), SilentReporter(), device="cpu")
    assert found.adapted is not None and trained.adapted is not None
    for a, b in ((found.adapted, trained.adapted), (found.twin, trained.twin)):
        np.testing.assert_array_equal(a.passes.target_logits, b.passes.target_logits)
    assert [one.fingerprint() for one in found.adapted.alignments] == [
        one.fingerprint() for one in trained.adapted.alignments
    ]
    # What the report shows: the frozen backbone sees other images in the adapted model.
    stages = stage_divergences(trained)
    assert stages["mmd2"]["source-only"][0] != stages["mmd2"]["adapted"][0]
    assert "only because a method changes the images" in stages["note"]
    assert stage_divergences(found) == stages
    levels = image_levels(trained)
    assert levels is not None and levels == image_levels(found)
    spread = {view: found[0] for view, found in levels["spread"].items()}
    assert abs(spread["target"] - spread["source"]) > 0.02
    assert spread["target_after"] == pytest.approx(spread["source"], abs=0.01)


def cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the folder of a run of 2 epochs that stopped after its methods' first checkpoint."""
    from daptkit.train.loop import Trainer

    out, save = str(folder / "cut"), Trainer._save

    def once(self: Trainer) -> None:
        save(self)
        if self.job.methods:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save", once)
        run(folder, epochs=2, out=out)
    return out


def test_a_continued_run_ends_the_same(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shade(site)
    whole = run(tmp_path, epochs=2)
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "other-cache"))
    continued = run(tmp_path, epochs=2, out=cut(tmp_path, monkeypatch), resume=True)
    for name in ("predictions.csv", "metrics.jsonl"):
        one, two = (Path(t.config.out) / name for t in (whole, continued))
        assert one.read_bytes() == two.read_bytes()
    model = Path("model")
    for name in ("model.safetensors", "alignments.safetensors"):
        one, two = (Path(t.config.out) / model / name for t in (whole, continued))
        assert one.read_bytes() == two.read_bytes()


def test_a_run_does_not_go_on_with_another_alignment_of_the_same_images(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shade(site)
    out = cut(tmp_path, monkeypatch)

    def goes_on_with(method: str) -> None:
        del sys.modules["plugin_shade_method"]
        (site.folder / "plugin_shade_method.py").write_text(
            method.replace("SHAPE", "2").replace("CHANGES_SOURCE", "False")
        )
        importlib.invalidate_caches()
        run(tmp_path, epochs=2, out=out, resume=True)

    for before, now in (
        ("values.std(1)", "2 * values.std(1)"),  # another fit
        ("return images + ", "return 0.9 * images + "),  # another use of it
    ):
        with pytest.raises(DaptkitError, match=r"\(fake-shade 1\.3\) aligns images otherwise"):
            goes_on_with(METHOD.replace(before, now))
    # Rounded otherwise, as on another machine.
    goes_on_with(METHOD.replace("copy_(found)", "copy_((1 + 1e-6) * found)"))


def test_the_guard_delivers_the_source_only_model_without_alignment(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shade(site)
    monkeypatch.setattr("daptkit.train.models.judge_run", judged(delivers_twin=True))
    trained = run(tmp_path)
    out = Path(trained.config.out)
    assert load_model_folder(out / "model").alignments == ()
    assert [one.method for one in load_model_folder(out / "adapted" / "model").alignments] == [
        "shade"
    ]
    predict(out, trained.config.target, out=tmp_path / "p.csv", device="cpu")
    assert (tmp_path / "p.csv").read_text() == (out / "predictions.csv").read_text()


def test_a_run_from_such_a_model_is_told_what_it_does_not_do(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    first = run(tmp_path)
    started = {"init_from": first.config.out, "model": "resnet18", "bottleneck": 256}
    told = "warning: method 'shade' aligned the target of the model of --init-from"
    lines = Lines()
    run(tmp_path, lines, method="none", out=str(tmp_path / "plain"), **started)
    assert sum(line.startswith(told) for line in lines.lines) == 1
    lines = Lines()
    again = run(tmp_path, lines, out=str(tmp_path / "again"), **started)
    assert not any(line.startswith(told) for line in lines.lines)
    assert again.adapted is not None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no')", r"failed in fit_images\(\): ValueError: no"),
        (
            "self.register_buffer('source', torch.zeros(9))",
            r"fit_images\(\) changed the shape of 'source'",
        ),
        ("self.source.fill_(float('nan'))", r"align_images\(\) returned a value that is not fin"),
    ],
)
def test_a_fit_that_fails_stops_the_run_before_training(
    site: Any, tmp_path: Path, body: str, words: str
) -> None:
    broken = (
        METHOD
        + f"""
    def fit_images(self, source, target):
        {body}
"""
    )
    install_shade(site, method=broken)
    with pytest.raises(PluginError, match=rf"'shade' \(fake-shade 1.3\).*{words}"):
        run(tmp_path)
    assert not (tmp_path / "run" / "twin" / "model").exists()
    # Nothing was started, so the folder is free for a run that works.
    run(tmp_path, method="none", report=False)


def test_the_sample_is_of_training_images_and_of_the_seed(site: Any, tmp_path: Path) -> None:
    recorder = (
        METHOD
        + """
    samples = []

    def fit_images(self, source, target):
        super().fit_images(source, target)
        assert source.dtype == target.dtype == torch.float32
        assert source.device.type == "cpu"
        self.samples.append((source, target))
        self.source.copy_(torch.tensor([source.mean(), source.std()]))
        self.target.copy_(torch.tensor([target.mean(), target.std()]))
"""
    )
    install_shade(site, method=recorder)
    trained = run(tmp_path)
    run(tmp_path, out=str(tmp_path / "same"))
    run(tmp_path, out=str(tmp_path / "other"), seed=7)
    from plugin_shade_method import Shade  # type: ignore[import-not-found]

    (one, two, other), data = Shade.samples, trained.prepared.data
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert one[0].shape == (len(data.train_rows), 1, 16, 16)
    # 90 images are fewer than 256: all of them, of the split that is trained on alone.
    train = to_float(data.source.images.batch(data.train_rows))
    assert torch.equal(one[0], train)
    assert len(other[1]) == len(data.target_rows)
