"""The plots of the report, and the sentences that read its numbers."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

import report_data
from daptkit.report.figures import Points, draw
from daptkit.report.figures.embedding import MARKERS, OTHER, class_shapes
from daptkit.report.figures.style import house_style
from daptkit.report.reading.domains import agreement, closeness, stage_sentences
from daptkit.report.reading.source import task_kept
from daptkit.report.reading.training import (
    ends,
    panels,
    read_discriminator,
    read_loss,
    read_validation_loss,
)
from daptkit.report.reading.words import decimals, listing, number, percent, plain, significant

SVG = "{http://www.w3.org/2000/svg}"


def some_points(classes: list[str], n: int = 40) -> dict[tuple[str, str], Points]:
    rng = np.random.default_rng(0)
    return {
        (model, domain): Points(
            rng.normal(size=n).tolist(),
            rng.normal(size=n).tolist(),
            [classes[k] for k in rng.integers(len(classes), size=n)],
        )
        for model in report_data.MODELS
        for domain in ("source", "target")
    }


def texts(svg: bytes) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return report_data.full_report()


@pytest.fixture(scope="module")
def plots(report: dict[str, Any]) -> dict[str, Any]:
    return draw(report, some_points(list(report_data.CLASSES)), panels(report))


def test_every_plot_is_svg_that_a_phone_can_read(plots: dict[str, Any]) -> None:
    drawn = [plot for section in plots.values() for plot in section]
    assert len({plot.name for plot in drawn}) == len(drawn)
    for plot in drawn:
        root = ElementTree.fromstring(plot.svg)
        width = float(root.attrib["width"].removesuffix("pt"))
        sizes = {float(size) for size in re.findall(rb"font-size: ([0-9.]+)px", plot.svg)}
        assert sizes and min(sizes) * 358 / width >= 11 - 0.1


def test_plots_name_what_they_show(plots: dict[str, Any]) -> None:
    embedding = texts(plots["embedding"][0].svg)
    assert {"source, class as labelled", "target, class as predicted"} <= set(embedding)
    assert set(report_data.CLASSES) <= set(embedding)
    assert set(report_data.STAGES) <= set(texts(plots["stages"][0].svg))
    frequencies = texts(plots["frequencies"][0].svg)
    assert {"source labels", "predicted before", "predicted after"} <= set(frequencies)
    assert "target estimate, 95% interval" in frequencies


def test_points_are_one_picture(plots: dict[str, Any]) -> None:
    for plot in plots["embedding"]:
        assert plot.svg.count(b"data:image/png;base64,") == 1
        assert len(plot.svg) < 300_000


def test_class_names_are_drawn_as_written() -> None:
    report = report_data.small_report(report_data.NASTY)
    drawn = draw(report, some_points(list(report_data.NASTY)), panels(report))
    shown = texts(drawn["frequencies"][0].svg)
    assert {"a <b> & $c_1$ 'd'", "plain_name", "50% $\\frac", "ümlaut"} <= set(shown)
    assert any(text == "x" * 23 + "…" for text in shown)


def test_frequent_classes_get_shapes() -> None:
    names = [f"c{i}" for i in range(10)]
    points = {("adapted", "source"): Points([], [], names + names[1:9])}
    shapes = class_shapes(names, points)
    assert [shapes[n] for n in names] == [OTHER, *MARKERS, OTHER]


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mpl.rcParams, "font.size", 33.0)
    monkeypatch.setitem(mpl.rcParams, "axes.grid", True)
    before = dict(mpl.rcParams)
    with house_style():
        assert mpl.rcParams["font.size"] != 33.0 and mpl.rcParams["axes.grid"] is False
        assert mpl.rcParams["backend"] == before["backend"]
    assert dict(mpl.rcParams) == before


def test_numbers() -> None:
    assert [number(None), percent(None), significant(None), plain(None)] == ["–"] * 4
    assert [decimals(x) for x in (None, 0.0, 0.0005, 8.68e-5)] == ["–", "0.000", "0.001", "8.7e−05"]
    # A deviation is written as its mean is, and rounding is 0.
    given = ((4e-5, 0.136), (1.2e-5, 8.68e-5), (5e-17, 0.5), (1e-17, None))
    found = [decimals(x, beside=mean) for x, mean in given]
    assert found == ["0.000", "1.2e−05", "0.000", "0.000"]
    assert number(-1.234) == "\N{MINUS SIGN}1.23" and number(12345.6, 1) == "12,345.6"
    assert [significant(x) for x in (0.0217, 0.4, 352.07, 12345.6)] == [
        "0.0217",
        "0.400",
        "352",
        "12,346",
    ]
    assert plain([0.5, True, None]) == "0.5, yes, –" and plain({"a": 1}) == "a: 1"
    assert [listing(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("values", "reading"),
    [
        ([0.97, 0.9, 0.8, 0.7, 0.61], "less well at the end"),
        ([0.97, 0.8, 0.6, 0.52, 0.51], "could hardly tell the sites apart"),
        ([0.96, 0.97, 0.97, 0.97, 0.96], "has not worked against it"),
        ([0.51, 0.5, 0.5, 0.5, 0.5], "near chance all along"),
        ([0.7, 0.75, 0.8, 0.85, 0.9], "got ahead"),
        ([0.7, 0.71, 0.7, 0.71, 0.7], "about the same"),
        ([0.8, 0.65, 0.93, 0.66, 0.9], "swinging between 65.0% and 93.0%"),
    ],
)
def test_reading_of_a_discriminator(values: list[float], reading: str) -> None:
    said = read_discriminator(values)
    assert reading in said
    assert f"Started at {percent(values[0])} and ended at {percent(values[-1])}" in said


def test_a_discriminator_that_lost_is_held_against_a_fresh_one() -> None:
    falling = [0.97, 0.9, 0.8, 0.7, 0.61]
    assert read_discriminator(falling, 1.93).endswith("can (proxy A-distance 1.93).")
    assert "fresh" not in read_discriminator(falling, 0.4)


def test_reading_of_losses() -> None:
    falling = [1.0 / (i + 1) for i in range(40)]
    rising = [*falling, *(0.03 + 0.02 * i for i in range(20))]
    assert "rose" not in read_loss(falling)
    assert "rose" in read_loss(rising)
    assert "sign of overfitting to" in read_validation_loss([0.6, 0.4, 0.5, 0.6])
    assert "Lowest after epoch 2 (0.400), 0.600 at the end" in read_validation_loss(
        [0.6, 0.4, 0.5, 0.6]
    )
    assert "no clear rise since" in read_validation_loss([0.6, 0.4, 0.3, 0.31])
    # Far too small a rise to call it, and no reason to call the course sound either.
    assert "overfitting" not in read_validation_loss([0.547, 0.57, 0.579])
    # An epoch without the value still counts as an epoch.
    assert "Lowest after epoch 3" in read_validation_loss([None, 0.6, 0.3, 0.31])


def test_ends_are_means_of_tenths() -> None:
    values = [float(v) for v in range(20)]
    assert ends(values) == (np.mean(values[:2]), np.mean(values[-2:]))
    assert ends([None, 3.0, None]) == (3.0, 3.0)


def test_panels_are_generic_over_plugins(report: dict[str, Any]) -> None:
    training = {
        "adapted": report["training"]["adapted"]
        | {
            "losses": {"mine/pull": [1.0, 0.9, 0.8, 0.6, 0.5]},
            "logged": {
                "mine/pair_discriminator_accuracy": [0.9, 0.8, 0.7, 0.65, 0.6],
                "empty": [None] * 5,
            },
            "step": [1, 2, 3, 4, 5],
            "lr": [0.1] * 5,
        }
    }
    made = {panel.key: panel for panel in panels(report | {"training": training})}
    assert made["mine/pull"].title == "mine: pull loss"
    assert made["mine/pair_discriminator_accuracy"].chance == 0.5
    assert "less well at the end" in made["mine/pair_discriminator_accuracy"].reading
    assert "empty" not in made


def test_a_series_that_one_model_lacks(report: dict[str, Any]) -> None:
    training = copy.deepcopy(report["training"])
    training["adapted"]["epoch"]["source_val_loss"] = [None] * 5
    made = {panel.key: panel for panel in panels(report | {"training": training})}
    assert list(made["source_val_loss"].lines) == ["source-only"]


def test_what_is_not_known_is_drawn_as_gaps() -> None:
    report = report_data.full_report() | {"training": {}}
    for model in report["models"]:
        report["stages"]["mmd2"][model] = [None] * len(report_data.STAGES)
        report["calibration"][model] |= {"calibrated": {"ece": None, "bins": []}}
    report["stages"]["proxy_a_distance"]["adapted"][2] = None
    report["prior"] |= {"target_low": None, "target_high": None}
    plots = draw(report, {}, panels(report))
    assert plots["embedding"] == [] and plots["training"] == []
    assert [len(plots[key]) for key in ("stages", "frequencies", "reliability")] == [1, 1, 2]


def test_reading_of_distances(report: dict[str, Any]) -> None:
    def with_distance(before: float, after: float) -> dict[str, Any]:
        one = {"mmd2": 0.1, "knn_domain_accuracy": 0.8}
        return report | {
            "divergence": {
                "source-only": one | {"proxy_a_distance": before},
                "adapted": one | {"proxy_a_distance": after},
            }
        }

    assert "closer together" in closeness(with_distance(1.9, 0.9))
    assert "further apart" in closeness(with_distance(0.9, 1.9))
    assert "about as well as before" in closeness(with_distance(1.94, 1.93))
    assert agreement(report).startswith("All three measures fell.")
    rose = agreement(with_distance(0.9, 1.9))
    assert rose.startswith("Proxy A-distance rose; the rest changed little.")
    assert agreement(with_distance(1.9, 1.9)).startswith("None of the three measures")


def test_reading_of_stages(report: dict[str, Any]) -> None:
    far, change = stage_sentences(report)
    assert "“features (bottleneck)” (1.94) and hardest at “blocks.0” (1.61)" in far
    assert "most at “logits”, from 1.71 to 0.62" in change
    assert "“blocks.0”, it stayed at 1.61" in change


def test_stages_that_are_alike_are_counted(report: dict[str, Any]) -> None:
    def with_stages(before: list[float], after: list[float]) -> dict[str, Any]:
        distances = {"source-only": before, "adapted": after}
        shown = {"source": 256, "target": 240}
        stages = {"layers": ["a", "b", "c"], "shown": shown, "proxy_a_distance": distances}
        return report | {"stages": stages}

    far, change = stage_sentences(with_stages([2.0, 2.0, 0.6], [2.0, 2.0, 0.9]))
    assert "at “a” and 1 other stage (2.00) and hardest at “c” (0.60)" in far
    assert "most at “c”, from 0.60 to 0.90" in change
    alike, change = stage_sentences(with_stages([2.0, 1.98, 1.95], [2.0, 1.98, 1.95]))
    assert "equally easy to tell apart at all stages (1.95 to 2.00)" in alike
    assert "at no stage" in change


def test_reading_of_the_source_task(report: dict[str, Any]) -> None:
    def with_scores(before: float, after: float, spread: float = 0.05) -> dict[str, Any]:
        def score(value: float) -> dict[str, Any]:
            estimate = {"value": value, "low": value - spread, "high": value + spread}
            return {"n": 240, "balanced_accuracy": estimate}

        return report | {
            "source_validation": {"source-only": score(before), "adapted": score(after)}
        }

    assert "is kept" in task_kept(with_scores(0.80, 0.79))
    assert "240 images would not show" in task_kept(with_scores(0.80, 0.79, spread=0.2))
    assert "within the uncertainty of 240 images" in task_kept(with_scores(0.80, 0.76))
    assert "cost it some of the task" in task_kept(with_scores(0.80, 0.70))
    assert "70.0% (65.0–75.0), against 80.0%" in task_kept(with_scores(0.80, 0.70))
