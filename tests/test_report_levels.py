"""Levels of images before and after alignment: counted, drawn and read."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import report_data
from daptkit.data import AlignedImages
from daptkit.report.figures.levels import level_plots
from daptkit.report.figures.style import house_style
from daptkit.report.levels import BINS, image_levels
from daptkit.report.page import write_page
from daptkit.report.reading.levels import channels, view_names, what_it_did
from daptkit.run import RunFolder
from daptkit.train.device import resolve_device
from daptkit.train.domains import TaskData
from daptkit.train.prepare import prepare
from daptkit.train.progress import SilentReporter
from fakes import tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    config = tiny_config(tmp_path_factory.mktemp("levels"), in_chans=3)
    return prepare(config, resolve_device("cpu"), SilentReporter(), ("features",)).data


def trained(data: TaskData, changed: TaskData | None) -> Any:
    """What the measuring asks of a run."""
    adapted = None
    if changed is not None:
        adapted = SimpleNamespace(fit=SimpleNamespace(passes=SimpleNamespace(data=changed)))
    return SimpleNamespace(
        record={"images": None if changed is None else {"method": "shade"}},
        adapted=adapted,
        config=SimpleNamespace(seed=0),
        prepared=SimpleNamespace(data=data),
    )


def lit(data: TaskData, scale: tuple[float, float, float], domain: str) -> TaskData:
    """The data with the channels of a domain scaled."""
    old = getattr(data, domain)
    factors = torch.tensor(scale)[:, None, None]
    images = AlignedImages(old.images, lambda x: x * factors, fingerprint="", keep=False)
    changed: Any = {domain: replace(old, images=images)}
    return replace(data, **changed)


def test_levels_are_those_of_the_images(data: TaskData) -> None:
    found = image_levels(trained(data, lit(data, (0.5, 1.0, 1.0), "target")))
    assert found is not None
    assert found["channels"] == ["red", "green", "blue"]
    assert found["shown"] == {"source": len(data.train_rows), "target": len(data.target_rows)}
    raw = data.target.images.batch(data.target_rows).numpy()  # (N, 3, 16, 16) uint8
    source = data.source.images.batch(data.train_rows).numpy()
    for view, values in (
        ("source", source[:, 0]),
        ("target", raw[:, 0]),
        ("target_after", np.rint(raw[:, 0] / 2).astype(np.uint8)),
    ):
        shares = np.zeros(BINS)
        for value in values.reshape(-1).tolist():
            shares[value // 4] += 1 / values.size
        np.testing.assert_allclose(found["shares"][view][0], shares, atol=1e-5)
        assert found["mean"][view][0] == pytest.approx(values.mean() / 255, abs=0.01)
        assert found["spread"][view][0] == pytest.approx(values.std() / 255, abs=0.01)
    # How far a level moves on average; within a bin nothing is seen of it.
    a, b = (np.sort(np.resize(x[:, 0].reshape(-1), 20000)) / 255.0 for x in (source, raw))
    assert found["distance"]["before"][0] == pytest.approx(np.abs(a - b).mean(), abs=0.01)
    assert found["distance"]["after"][0] > found["distance"]["before"][0] + 0.05
    assert found["distance"]["after"][1] == found["distance"]["before"][1]


def test_equal_channels_are_one_and_a_changed_source_is_shown(data: TaskData) -> None:
    found = image_levels(trained(data, lit(data, (0.5, 0.5, 0.5), "source")))
    assert found is not None
    assert found["channels"] == ["grey"]
    assert set(found["shares"]) == {"source", "source_after", "target", "target_after"}
    before, after = (found["mean"][view][0] for view in ("source", "source_after"))
    assert after == pytest.approx(before / 2, abs=0.01)
    report = report_data.small_report() | {"images": found}
    assert view_names(report) == ["Source", "Source after", "Target before", "Target after"]
    assert channels(report)[0].views[1].startswith(f"{after:.2f} ±")
    (plot,) = _plots(report)
    assert b"source, as the model sees it" in plot.svg


def test_nothing_is_measured_where_nothing_is_changed(data: TaskData) -> None:
    assert image_levels(trained(data, None)) is None
    assert _plots(report_data.bare_report()) == []


def _plots(report: dict[str, Any]) -> list[Any]:
    with house_style():
        return level_plots(report)


def test_the_page_tells_of_it(tmp_path: Path) -> None:
    report = report_data.small_report()
    report_data.write_run(tmp_path / "with", report)
    page = write_page(RunFolder(tmp_path / "with")).read_text(encoding="utf-8")
    assert "Images before and after alignment" in page
    assert "The adapted model is trained on target images as colour changes them" in page
    rows = re.findall(r'<th scope="row" class="name">(red|green|blue)</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == ["red", "green", "blue"]
    assert f"{report['images']['distance']['after'][2]:.3f}" in rows[2][1]
    assert (tmp_path / "with" / "figures" / "image-levels.svg").is_file()
    report_data.write_run(tmp_path / "without", report | {"images": None})
    page = write_page(RunFolder(tmp_path / "without")).read_text(encoding="utf-8")
    assert "before and after alignment" not in page


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([0.2, 0.1], [0.01, 0.01], "colour brought the images closer: .* from 0.150 to 0.010."),
        ([0.01, 0.01], [0.1, 0.1], "colour did not bring the levels closer: .* 0.100. It may"),
        ([0.05, 0.05], [0.052, 0.05], "colour hardly changed the levels as a whole: "),
    ],
)
def test_what_it_did_is_said(before: list[float], after: list[float], words: str) -> None:
    report = copy.deepcopy(report_data.small_report())
    report["images"]["distance"] = {"before": before, "after": after}
    assert re.match(words, what_it_did(report))
