"""report.html: its numbers are those of report.json, and it needs nothing but itself."""

from __future__ import annotations

import base64
import copy
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import daptkit.recipes
import report_data
from daptkit.cli.report import command
from daptkit.errors import DaptkitError
from daptkit.report.page import write_page
from daptkit.run import RunFolder


def page_of(folder: Path, data: dict[str, Any]) -> str:
    report_data.write_run(folder, data)
    return write_page(RunFolder(folder)).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """The page's text as a reader sees it, white space made single."""
    without_style = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without_style)).split())


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return report_data.full_report()


@pytest.fixture(scope="module")
def page(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("full"), data)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("bare"), report_data.bare_report())


class Structure(HTMLParser):
    """Collects what the checks of structure need."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


def test_the_opening_says_what_the_numbers_say(page: str) -> None:
    text = words_of(page)
    assert "trained on 2,460 labelled images of the source" in text
    assert "adapted with dann+bbse to 3,571 unlabelled images of the target" in text
    assert "closer together" in text and "fell from 1.94 to 0.88" in text
    assert "not known from this page" in text
    assert "daptkit evaluate RUN/twin --data sample.csv" in text
    assert "3 unreadable image files were left out" in text


def test_every_section_shows_its_numbers(page: str, data: dict[str, Any]) -> None:
    text = words_of(page)
    prior, scores = data["prior"], data["source_validation"]
    expected = ["0.149", "0.0217", "0.95", "0.66", "352.1", "flips and rotations", "917.2 s"]
    for name in data["data"]["classes"]:
        expected += [f"{100 * prior[key][name]:.1f}%" for key in ("source", "predicted", "target")]
        expected += [f"{100 * prior['predicted_twin'][name]:.1f}%"]
        expected += [f"{data['data']['source_counts'][name]:,}"]
        for model in data["models"]:
            one = scores[model]["per_class"][name]
            expected += [
                f"{100 * one['sensitivity']['value']:.1f}%",
                f"{100 * one['specificity']['low']:.1f}–{100 * one['specificity']['high']:.1f}",
                f"{one['auroc']['value']:.3f}",
                f"{100 * data['predicted'][model][name]:.1f}%",
            ]
    for model in data["models"]:
        expected += [
            f"{100 * scores[model]['balanced_accuracy']['value']:.1f}%",
            f"{scores[model]['nll']['value']:.3f}",
            f"error {data['calibration'][model]['uncalibrated']['ece']:.3f} uncalibrated",
            f"{data['calibration'][model]['calibrated']['ece']:.3f} calibrated",
            f"a temperature {data['calibration'][model]['choice']['nll']['temperature']:.3f}",
        ]
        expected += [str(n) for row in scores[model]["confusion_matrix"] for n in row]
    assert [number for number in expected if number not in text] == []


def test_provenance_and_options(page: str, data: dict[str, Any]) -> None:
    text = words_of(page)
    run = data["run"]
    for name, version in run["versions"].items():
        assert f"{name} {version}" in text
    assert run["weights"] in page and "3463d25c3463…" in text
    assert "dann.gamma 10" in text and "epochs –" in text and "amp no" in text
    assert "arXiv:1802.03916" in text
    assert "bbse: two estimates of the target prior differ by 0.12." in text


def test_by_site(page: str) -> None:
    assert "north 130 86.1% 86.1% 82.3% 82.3%" in words_of(page)


def test_one_model_without_anything_measured(bare: str) -> None:
    text = words_of(bare)
    assert "Trained at the source site, not adapted" in text
    assert "no adaptation was asked for" in text
    assert "the features could not be measured: that takes 15 images" in text
    assert "Fewer than 100 images are shown, too few for UMAP." in text
    assert "No stage of this network gives one array of features." in text
    assert "MMD² –" in text
    assert "adapted model" not in text and "twin" not in text
    assert "None" not in text and "nan" not in text.split()


def test_true_scores_stand_where_the_truth_is_known(tmp_path: Path, page: str) -> None:
    data = report_data.with_true_scores(report_data.small_report())
    text = words_of(page_of(tmp_path, data))
    assert data["true_scores"]["why"] in text
    for scores in data["true_scores"]["scores"].values():
        low, high = (100 * scores["accuracy"][end] for end in ("low", "high"))
        assert f"{100 * scores['accuracy']['value']:.1f}% {low:.1f}–{high:.1f}" in text
    assert "not known from this page" not in text
    assert "True scores" not in words_of(page)


def test_a_collapse_is_said_first(tmp_path: Path) -> None:
    fractions = dict.fromkeys(report_data.CLASSES, 0.0) | {"monocyte": 0.97, "basophil": 0.03}
    collapse = {
        "fractions": fractions,
        "never": ["eosinophil", "lymphocyte", "neutrophil"],
        "collapsed": True,
    }
    text = words_of(page_of(tmp_path, report_data.bare_report() | {"collapse": collapse}))
    warning = text.index("Warning: 97.0% of the target images are predicted as “monocyte”")
    assert warning < text.index("What was done.")
    assert "No target image is predicted as “eosinophil”, “lymphocyte” and “neutrophil”" in text


def test_an_estimate_that_is_not_trusted_is_said(tmp_path: Path) -> None:
    changed = report_data.small_report()
    changed["prior"] |= dict.fromkeys(("target", "target_low", "target_high"))
    changed["method_reports"]["bbse"] |= {"trusted": False, "estimate": [0.2] * 5}
    text = words_of(page_of(tmp_path, changed))
    assert "bbse estimated the target’s class frequencies but does not trust the estimate" in text
    assert "target, 95% interval" not in text
    shares = {m: changed["predicted"][m] for m in changed["models"]}
    source = changed["prior"]["source"]
    name = max(source, key=lambda c: abs(shares["adapted"][c] - source[c]))
    before, after = (f"{100 * shares[m][name]:.1f}%" for m in changed["models"])
    assert f"“{name}” is predicted for {after} of the target images ({before} before)" in text


@pytest.mark.parametrize("which", ["page", "bare"])
def test_the_page_needs_nothing_but_itself(which: str, request: pytest.FixtureRequest) -> None:
    content: str = request.getfixturevalue(which)
    for _, attributes in Structure(content).attributes:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("#", "data:image/svg+xml;base64,"))
    assert "<script" not in content and "@import" not in content and "url(" not in content
    assert "helped" not in content.lower()


def test_images_hold_no_address(page: str) -> None:
    images = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(images) == 15
    for image in images:
        svg = base64.b64decode(image).decode()
        assert not re.findall(r'href="(?!#|data:image/png;base64,)[^"]*"', svg)


@pytest.mark.parametrize("which", ["page", "bare"])
def test_structure(which: str, request: pytest.FixtureRequest) -> None:
    content: str = request.getfixturevalue(which)
    structure = Structure(content)
    assert structure.open == []
    assert structure.all("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in structure.all("meta"))
    steps = zip(structure.headings, structure.headings[1:], strict=False)
    assert structure.headings.count(1) == 1 and all(b <= a + 1 for a, b in steps)
    assert all(th.get("scope") for th in structure.all("th"))
    assert all(len(img["alt"] or "") > 20 for img in structure.all("img"))
    ids = [a["id"] for _, a in structure.attributes if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in structure.all("a")} <= set(ids)


def test_class_names_of_any_kind(tmp_path: Path) -> None:
    names = [*report_data.NASTY, *(f"class {i}" for i in range(25))]
    page = page_of(tmp_path, report_data.small_report(names))
    assert "<b> &" not in page and "a &lt;b&gt; &amp; $c_1$ &#39;d&#39;" in page
    for name in names:
        assert name in words_of(page)
    assert "22 rarer classes" in (tmp_path / "figures" / "embedding-adapted.svg").read_text()


def test_same_data_same_bytes(tmp_path: Path) -> None:
    data = report_data.small_report()
    assert page_of(tmp_path / "a", data) == page_of(tmp_path / "b", data)


def test_figures_of_an_earlier_page_go(tmp_path: Path) -> None:
    page_of(tmp_path, report_data.small_report())
    assert (tmp_path / "figures" / "embedding-adapted.svg").exists()
    page_of(tmp_path, report_data.bare_report())
    left = {f.name for f in (tmp_path / "figures").iterdir()}
    assert "embedding-source-only.svg" in left
    assert not left & {"embedding-adapted.svg", "reliability-adapted.svg"}


def test_size(page: str) -> None:
    assert len(page) < 1_500_000


def test_damage_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    data = report_data.small_report()
    again = re.escape(f"daptkit report {tmp_path} --remeasure")
    folder = RunFolder(tmp_path)
    with pytest.raises(DaptkitError, match=again):
        write_page(folder)
    without_prior = {key: value for key, value in data.items() if key != "prior"}
    lacks_a_score = copy.deepcopy(data)
    del lacks_a_score["source_validation"]["adapted"]["auroc"]
    for content in (
        "{",
        "[]",
        json.dumps(data | {"format": 2}),
        json.dumps(without_prior),
        json.dumps(lacks_a_score),
    ):
        report_data.write_run(tmp_path, data)
        folder.report_data.write_text(content)
        with pytest.raises(DaptkitError, match=again):
            write_page(folder)
    for points in ("model,domain\nadapted,source\n", "model,domain,class,x,y\na,source,b,nan,1\n"):
        report_data.write_run(tmp_path, data)
        folder.embedding.write_text(points)
        with pytest.raises(DaptkitError, match=again):
            write_page(folder)
    assert not folder.report.exists()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]) -> None:
    report_data.write_run(tmp_path, data)
    asked: list[dict[str, Any]] = []

    def build_report(run: str, **options: Any) -> Path:
        asked.append({"run": run} | options)
        return RunFolder(run).report

    monkeypatch.setattr(daptkit.recipes, "build_report", build_report, raising=False)
    plain = CliRunner().invoke(command, [str(tmp_path), "--remeasure"])
    assert plain.exit_code == 0 and plain.stdout == f"{tmp_path / 'report.html'}\n"
    assert asked[0]["run"] == str(tmp_path) and asked[0]["remeasure"] is True
    printed = json.loads(CliRunner().invoke(command, [str(tmp_path), "--json"]).stdout)
    assert printed == {"report": str(tmp_path / "report.html")} | data
    assert asked[1]["remeasure"] is False
