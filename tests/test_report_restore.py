"""Bringing a run back from its folder, and building its report again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.errors import DaptkitError, DataError, Terminated, UsageError
from daptkit.model import load_model_folder
from daptkit.report.build import build_report, report_trained, write_measures
from daptkit.report.embedder import Embedder
from daptkit.report.measure import models_of
from daptkit.report.restore import restore
from daptkit.run import RunFolder
from daptkit.testing import imports_torch
from daptkit.train.adaptation import Trained
from daptkit.train.crossfit import HeldOut, held_out
from daptkit.train.progress import SilentReporter
from report_runs import CANARY, backbone_weights, dead_embedder, finished

SILENT = SilentReporter()


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = finished(tmp_path_factory.mktemp("restore"), guard=False)
    with dead_embedder() as embedder:
        write_measures(trained, embedder)
    return trained


@pytest.fixture
def folder(original: Trained, tmp_path: Path) -> RunFolder:
    """A copy of the run; its data stay where they are."""
    shutil.copytree(original.folder.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def moved(original: Trained, tmp_path: Path) -> Iterator[tuple[RunFolder, Path]]:
    """A copy of run and data, which a test may change, and the folder of the data."""
    home = original.folder.root.parent
    shutil.copytree(home, tmp_path / CANARY)
    folder = RunFolder(tmp_path / CANARY / "run")
    text = folder.config.read_text().replace(str(home), str(tmp_path / CANARY))
    folder.config.write_text(text)
    yield folder, tmp_path / CANARY


@pytest.fixture(autouse=True)
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daptkit.report.embedder._child_command", lambda: ["false"])


def test_a_restored_run_is_the_run(original: Trained, folder: RunFolder) -> None:
    again = restore(folder, SILENT, device="cpu")
    assert again.record == json.loads(original.folder.record.read_text())
    before, after = models_of(original), models_of(again)
    assert list(before) == list(after) == ["source-only", "adapted"]
    for name, model in before.items():
        for key, value in model.net.state_dict().items():
            assert torch.equal(value, after[name].net.state_dict()[key])
        assert np.array_equal(model.passes.target_logits, after[name].passes.target_logits)
        assert np.array_equal(model.passes.source_features, after[name].passes.source_features)
        assert np.array_equal(model.held_out.logits, after[name].held_out.logits)
        assert model.held_out.folds == after[name].held_out.folds
        assert model.rule.to_json() == after[name].rule.to_json()
        assert model.fit.reports == after[name].fit.reports
        assert torch.allclose(model.fit.class_weights, after[name].fit.class_weights.float())


def test_measuring_again_gives_the_same_files(original: Trained, folder: RunFolder) -> None:
    before = [folder.report_data.read_bytes(), folder.embedding.read_bytes()]
    folder.report_data.unlink()
    build_report(folder.root, device="cpu", workers=1, reporter=SILENT)
    again = json.loads(folder.report_data.read_text())
    old = json.loads(before[0])
    # The one difference is how the process of this test fails to be UMAP.
    assert again["embedding"].pop("why_pca") != old["embedding"].pop("why_pca")
    again["run"]["options"].pop("workers"), old["run"]["options"].pop("workers")
    assert again == old
    assert folder.embedding.read_bytes() == before[1]


def test_a_source_only_run_is_restored(tmp_path: Path) -> None:
    trained = finished(tmp_path, method="none")
    again = restore(trained.folder, SILENT, device="cpu")
    assert again.adapted is None
    assert np.array_equal(again.twin.passes.val_logits, trained.twin.passes.val_logits)


def test_a_page_is_drawn_without_data_and_models(folder: RunFolder) -> None:
    shutil.rmtree(folder.model)
    shutil.rmtree(folder.twin.root)
    page = build_report(folder.root, reporter=SILENT)
    assert page == folder.report
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()
    with pytest.raises(DataError):
        build_report(folder.root, remeasure=True, reporter=SILENT)


def test_drawing_needs_no_torch() -> None:
    assert not imports_torch("daptkit.report.build")


def test_true_scores_stay_unless_given_anew(folder: RunFolder) -> None:
    def kept() -> object:
        return json.loads(folder.report_data.read_text())["true_scores"]

    before = json.loads(folder.report_data.read_text())
    scores = before["source_validation"]
    first, second = {"why": "drawn", "scores": scores}, {"why": "drawn anew", "scores": scores}
    build_report(folder.root, true_scores=first, reporter=SILENT)
    assert {**before, "true_scores": first} == json.loads(folder.report_data.read_text())
    build_report(folder.root, reporter=SILENT)
    assert kept() == first
    build_report(folder.root, remeasure=True, device="cpu", reporter=SILENT)
    assert kept() == first
    build_report(folder.root, remeasure=True, true_scores=second, device="cpu", reporter=SILENT)
    assert kept() == second


def test_true_scores_of_other_models_are_refused(original: Trained, folder: RunFolder) -> None:
    before, odd = folder.report_data.read_bytes(), {"why": "drawn", "scores": {"adapted": {}}}
    for remeasure in (False, True):
        with pytest.raises(UsageError, match="source-only"):
            build_report(folder.root, true_scores=odd, remeasure=remeasure, reporter=SILENT)
    assert folder.report_data.read_bytes() == before


def test_a_damaged_report_is_told_and_can_be_measured_again(folder: RunFolder) -> None:
    folder.report_data.write_text("{")
    with pytest.raises(DaptkitError, match="--remeasure"):
        build_report(folder.root, reporter=SILENT)
    told = Lines()
    build_report(folder.root, remeasure=True, device="cpu", reporter=told)
    assert any("true scores of the earlier report are lost" in line for line in told.lines)
    assert json.loads(folder.report_data.read_text())["true_scores"] is None


def test_report_of_models_in_memory(original: Trained, folder: RunFolder) -> None:
    folder.report_data.unlink()
    with dead_embedder() as embedder:
        page = report_trained(replace(original, folder=folder), embedder, None)
    assert page.is_file()
    assert folder.report_data.read_bytes() == original.folder.report_data.read_bytes()


def test_a_folder_in_use_is_left_alone(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(DaptkitError, match="another process is writing"):
        build_report(folder.root, reporter=SILENT)


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist"):
        build_report(tmp_path / "missing", reporter=SILENT)
    assert not (tmp_path / "missing").exists()


def test_not_a_run_folder(folder: RunFolder) -> None:
    with pytest.raises(DataError, match=r"not a run folder: it has no run\.toml"):
        build_report(folder.twin.root, reporter=SILENT)


def test_an_unfinished_run(folder: RunFolder) -> None:
    folder.record.unlink()
    with pytest.raises(DataError, match=r"not finished; finish it with .*--resume"):
        build_report(folder.root, reporter=SILENT)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"data": {"sha256": 1}, "figures": {}}'])
def test_a_damaged_record(folder: RunFolder, content: str) -> None:
    folder.record.write_text(content)
    with pytest.raises(DataError, match=r"run\.json' is damaged"):
        restore(folder, SILENT)


def test_changed_images_are_refused(moved: tuple[RunFolder, Path]) -> None:
    folder, data = moved
    restore(folder, SILENT, device="cpu")
    first, second = data / "b" / f"{CANARY}-0.png", data / "b" / f"{CANARY}-1.png"
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="of the target have changed since the run"):
        build_report(folder.root, remeasure=True, device="cpu", reporter=SILENT)


def test_changed_labels_of_the_source_are_refused(moved: tuple[RunFolder, Path]) -> None:
    folder, data = moved
    table = data / "a" / "images.csv"
    lines = table.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if ",bar," in line)
    lines[row] = lines[row].replace(",bar,", ",dot,")
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="of the source have changed since the run"):
        restore(folder, SILENT, device="cpu")


def test_data_that_are_gone(moved: tuple[RunFolder, Path]) -> None:
    folder, data = moved
    shutil.rmtree(data / "b")
    with pytest.raises(DataError, match=r"images\.csv"):
        restore(folder, SILENT, device="cpu")


def test_altered_weights_are_refused(folder: RunFolder) -> None:
    weights = folder.model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(DataError, match="altered or damaged"):
        restore(folder, SILENT, device="cpu")


def test_the_embedder_warms_up_only_for_enough_images(original: Trained) -> None:
    with Embedder(command=["true"]) as embedder:
        embedder.warm_up(original.prepared)
        assert embedder.started
    assert load_model_folder(original.folder.model).classes == original.prepared.classes


def test_cross_fitted_logits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(backbone_weights(tmp_path))
    trained = finished(tmp_path, method="none", finetune="frozen", pretrained_path=weights)
    assert trained.twin.held_out.folds > 1
    asked: list[int] = []

    def trained_again(*given: Any) -> HeldOut:
        asked.append(1)
        return held_out(*given)

    monkeypatch.setattr("daptkit.report.restore.held_out", trained_again)
    kept = trained.folder.root / "held_out.safetensors"
    whole = kept.read_bytes()
    for content, calls in ((whole, 0), (whole[:200], 1), (b"", 2)):
        kept.write_bytes(content)
        again = restore(trained.folder, SILENT, device="cpu").twin.held_out
        assert len(asked) == calls
        assert np.array_equal(again.logits, trained.twin.held_out.logits)
        assert np.array_equal(again.labels, trained.twin.held_out.labels)
        assert again.folds == trained.twin.held_out.folds


def test_terminated_while_measuring_promises_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(backbone_weights(tmp_path))
    trained = finished(tmp_path, method="none", finetune="frozen", pretrained_path=weights)
    (trained.folder.root / "held_out.safetensors").unlink()

    def stopped(*_: Any) -> HeldOut:
        raise Terminated("terminated; a checkpoint was written. Continue with --resume.")

    monkeypatch.setattr("daptkit.report.restore.held_out", stopped)
    with pytest.raises(Terminated, match=r"^terminated; the report was not built\.$"):
        restore(trained.folder, SILENT, device="cpu")
