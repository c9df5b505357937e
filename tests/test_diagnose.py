"""``daptkit diagnose``: from two sites to a kind of shift, a recommendation and a page."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.cli.main import run
from daptkit.diagnoseconfig import SHARED, DiagnoseOptions
from daptkit.errors import UsageError
from daptkit.host import PluginStatus, list_plugins
from daptkit.plugin import PROPERTIES
from daptkit.recipes import diagnosing, diagnosis_facts
from daptkit.recipes.diagnosis_inputs import Sites
from daptkit.report.diagnosis import summary_text
from daptkit.report.diagnosis.page import render_diagnosis
from daptkit.shift.heads import unseen_logits
from daptkit.shift.priortest import prior_test

CLASSES = ("disc", "ring")
MODEL = ("--model", "daptkit_lenet", "--img-size", "28", "--permutations", "99", "--device", "cpu")
CANARY = "Zebedee"


def draw(kind: str, rng: np.random.Generator, *, bright: float, noise: float) -> np.ndarray:
    """Draw a disc or a ring on a noisy ground, (32, 32) uint8."""
    y, x = np.mgrid[:32, :32] - 15.5 + rng.uniform(-2, 2, size=(2, 1, 1))
    radius = np.hypot(x, y)
    shape = radius < 9 if kind == "disc" else (radius < 11) & (radius > 7)
    image = 60 + 90 * shape + bright + noise * rng.normal(size=(32, 32))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_site(
    folder: Path, n: int, share: float, seed: int, *, bright: float = 0.0, noise: float = 12.0
) -> Path:
    """Write a site of ``n`` images, two for each patient, as a manifest; return it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label", "patient_id", "manufacturer"])
        for i in range(n):
            kind = CLASSES[int(i // 2 < share * n / 2)]
            name = f"{CANARY}_{i:03d}.png"
            Image.fromarray(draw(kind, rng, bright=bright, noise=noise)).save(folder / name)
            out.writerow([name, kind, f"{CANARY}-{seed}-{i // 2}", "Acme" if bright else "Bolt"])
    return folder / "list.csv"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sites")
    write_site(root / "a", 200, 0.5, 1)
    write_site(root / "same", 160, 0.5, 2)
    write_site(root / "rare", 160, 0.1, 3)
    write_site(root / "bright", 160, 0.5, 4, bright=60.0, noise=30.0)
    return root


def arguments(sites: Path, target: str, *more: str) -> list[str]:
    source = str(sites / "a" / "list.csv")
    both = ("--source", source, "--target", str(sites / target / "list.csv"))
    return ["diagnose", *both, *MODEL, *more]


def diagnose(sites: Path, target: str, capsys: Any, *more: str) -> dict[str, Any]:
    assert run(arguments(sites, target, "--json", *more)) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.fixture(scope="module")
def plainly(sites: Path) -> Callable[[str], dict[str, Any]]:
    """Diagnose a site once for all tests that ask for it."""

    @functools.cache
    def found(target: str) -> dict[str, Any]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert run(arguments(sites, target, "--json")) == 0
        return dict(json.loads(out.getvalue()))

    return lambda target: copy.deepcopy(found(target))


def some_labels(sites: Path, target: str, file: Path, *, wrong: bool = False, n: int = 60) -> Path:
    """Write a CSV of every second image of a site, with its labels or with the other class."""
    rows = list(csv.DictReader((sites / target / "list.csv").open()))[::2][:n]
    lines = ["path,label"]
    for row in rows:
        label = CLASSES[1 - CLASSES.index(row["label"])] if wrong else row["label"]
        lines.append(f"{row['path']},{label}")
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("target", "kinds"),
    [("same", {"none"}), ("rare", {"label"}), ("bright", {"covariate", "both"})],
)
def test_known_shifts_are_named(
    plainly: Callable[[str], dict[str, Any]], target: str, kinds: set[str]
) -> None:
    found = plainly(target)
    assert found["kind"] in kinds
    assert found["run"]["source_accuracy"] > 0.9
    methods = found["recommendation"]["methods"].split("+")
    addressed = {"none": set(), "bbse": {"label"}}
    covered = set().union(*(addressed.get(m, {"covariate"}) for m in methods))
    wanted = {"none": set(), "label": {"label"}, "covariate": {"covariate"}}
    assert covered == wanted.get(found["kind"], {"label", "covariate"})
    tests = found["diagnosis"]["tests"]
    # Whole patients are counted, two images each.
    assert tests["domains"]["source_patients"] == 100
    assert tests["domains"]["target_patients"] == 80
    looks = {d["name"]: d for d in found["diagnosis"]["appearance"]}
    assert not any(name.startswith(("red_", "green_", "blue_", "saturation")) for name in looks)
    properties = {p["name"]: p for p in found["properties"]}
    assert set(properties) == PROPERTIES - {"colour"}
    for p in properties.values():
        assert p["differs"] == any(looks[name]["p_adjusted"] <= 0.05 for name in p["differing"])
        assert p["differs"] or not p["methods"]
    spectrum = found["spectrum"]
    frequency = np.array(spectrum["frequency"])
    assert (np.diff(frequency) > 0).all() and frequency[-1] <= 2**0.5
    levels = {name: np.array(spectrum[name]["mean"]) for name in ("source", "target")}
    rise = levels["target"] - levels["source"]
    if target == "bright":
        assert properties["noise"]["differs"] and rise[-3:].min() > 0.3  # 0.8 before resizing
        assert looks["intensity_mean"]["effect"] > 0.9
        assert looks["noise"]["effect"] > 0.9
        assert looks["manufacturer"]["shares"] == {"Acme": [0.0, 1.0], "Bolt": [1.0, 0.0]}
    assert len(found["stages"]["layers"]) == len(found["stages"]["mmd2"]) >= 3
    estimates = {e["name"]: e for e in found["accuracy_estimates"]}
    assert estimates.keys() >= {"atc", "doc", "gde"}
    assert 0.8 < estimates["gde"]["estimated_accuracy"]["value"] <= 1.0
    # Either there is an estimate by agreement on the line, or it is said why not.
    assert ("aline" in estimates) != ("on no rising line" in found["agreeing_heads"]["note"])


def test_methods_are_named_for_what_they_say_they_even_out(
    sites: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def method(name: str, *corrects: str, status: str = "ok") -> PluginStatus:
        return PluginStatus(
            kind="method", name=name, package=f"pkg-{name}", version="1.0", status=status,
            addresses=["covariate"], roles=["inputs"], corrects=list(corrects),
        )  # fmt: skip

    made = [
        method("quiet", "noise"),
        method("tint", "colour"),
        method("light", "intensity", "noise"),
        method("gone", "noise", status="error"),
    ]
    others = [p for p in list_plugins() if not p.corrects]
    monkeypatch.setattr(diagnosing, "list_plugins", lambda: [*others, *made])
    found = diagnose(sites, "bright", capsys)
    properties = {p["name"]: p for p in found["properties"]}
    assert properties["noise"]["methods"] == ["light", "quiet"]
    assert properties["intensity"]["methods"] == ["light"]
    assert properties["resolution"]["methods"] == []
    # One that is only for what does not differ is not recommended either.
    said = found["recommendation"]
    fitting = {m for names in [said["methods"], *said["alternatives"]] for m in names.split("+")}
    assert {"light", "quiet"} <= fitting and not {"tint", "gone"} & fitting


def test_target_labels_alter_nothing_but_the_audit(
    sites: Path,
    tmp_path: Path,
    plainly: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = plainly("rare")
    assert plain["target_labels"] is None
    audits = []
    for wrong in (False, True):
        file = some_labels(sites, "rare", tmp_path / f"{wrong}.csv", wrong=wrong)
        found = diagnose(sites, "rare", capsys, "--target-labels", str(file))
        audits.append(found.pop("target_labels"))
        assert comparable(found) == comparable(plain, without="target_labels")
    right, swapped = audits
    assert right["concept"]["error"] < 0.1
    assert swapped["concept"]["error"] > 0.9
    assert right["concept"]["p"] > 0.05 >= swapped["concept"]["p"]
    assert right["bound"]["joint_error"] < 0.2 < swapped["bound"]["joint_error"]


def comparable(found: dict[str, Any], without: str = "") -> dict[str, Any]:
    """Return a diagnosis without its time."""
    kept = copy.deepcopy(found)
    kept.pop(without, None)
    del kept["run"]["seconds"]
    return kept


def test_labels_in_the_targets_manifest_are_not_read(
    sites: Path,
    tmp_path: Path,
    plainly: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = plainly("rare")
    listed = sites / "rare" / "list.csv"
    text = listed.read_text()
    other = sites / "rare" / "other.csv"
    other.write_text(text.replace(",disc,", ",x,").replace(",ring,", ",disc,"))
    source = str(sites / "a" / "list.csv")
    command = ["diagnose", "--source", source, "--target", str(other), *MODEL, "--json"]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert comparable(found) == comparable(plain)


def test_the_page_and_its_numbers(
    sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    labels = some_labels(sites, "bright", tmp_path / "few.csv")
    more = ("--out", str(out), "--target-labels", str(labels))
    assert run(arguments(sites, "bright", *more)) == 0
    printed = capsys.readouterr().out
    page = (out / "diagnosis.html").read_text(encoding="utf-8")
    data = json.loads((out / "diagnosis.json").read_text())
    for text in (page, json.dumps(data)):
        assert CANARY not in text
        assert str(tmp_path) not in text
        assert str(sites) not in text
    assert "http://" not in page
    assert "https://" not in page
    assert page.count('<img src="data:image/svg+xml;base64,') == 4
    assert f"-m {data['recommendation']['methods']}" in page
    assert printed.startswith(summary_text(data))
    for words in ("disagreement of heads:", "if the votes of independently trained heads are"):
        assert words in printed
    assert "disagreement of heads" in page
    assert "5 linear heads on the features, trained on resampled patients" in page
    for words in ("Concept shift", "Bound on the errors", "only under its assumption", "Caveats"):
        assert words in printed
    assert "random weights" in printed
    assert "  brightness: " in printed
    assert "light and shade over large areas" in printed
    assert "Light and shade over large areas" in page
    assert "60 labelled target images of 60 patients" in printed
    # The page of a diagnosis with little in it is a page too.
    bare = copy.deepcopy(data)
    bare["target_labels"] = bare["diagnosis"]["target_prior"] = None
    bare["agreeing_heads"] = {"heads": 0, "folds": 0, "note": "Not measured."}
    assert "Not measured." in summary_text(bare)
    assert "linear heads on the features" not in render_diagnosis(bare)
    bare["diagnosis"]["appearance"], bare["stages"]["layers"] = [], []
    bare["properties"], bare["spectrum"]["frequency"] = [], []
    assert "Nothing was compared." in render_diagnosis(bare)
    assert "not estimated" in summary_text(bare)


def test_too_few_images_give_caveats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_site(tmp_path / "a", 16, 0.5, 1)
    write_site(tmp_path / "b", 6, 0.5, 2)
    labels = some_labels(tmp_path, "b", tmp_path / "few.csv")
    found = diagnose(tmp_path, "b", capsys, "--target-labels", str(labels))
    assert (found["kind"], found["recommendation"]["methods"]) == ("unclear", "none")
    assert any("The target has 6 images only" in line for line in found["caveats"])
    assert found["diagnosis"]["target_prior"] is None
    assert found["target_labels"]["concept"]["p"] is None
    assert found["target_labels"]["bound"]["joint_error"] is None
    assert "not tested" in summary_text(found)


def test_arrays_are_named_by_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("a", 60), ("b", 40)):
        kinds = np.arange(n) % 2
        images = [draw(CLASSES[k], rng, bright=0.0, noise=12.0) for k in kinds]
        np.savez(tmp_path / f"{name}.npz", train_images=np.stack(images), train_labels=kinds)
    labels = tmp_path / "few.csv"
    labels.write_text("path,label\n" + "".join(f"train/{i},{i % 2}\n" for i in range(20)))
    sites = ["--source", str(tmp_path / "a.npz"), "--target", str(tmp_path / "b.npz")]
    assert run(["diagnose", *sites, *MODEL, "--json", "--target-labels", str(labels)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target_labels"]["counts"] == {"0": 10, "1": 10}
    assert any("Without patient ids" in line for line in found["caveats"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("name,label\nx.png,disc\n", "no column 'path'"),
        ("path,lable\n{first},disc\n", "no column 'label'; its first line has: path, lable. Did"),
        ("path,label\n{first},\n", "has no labels: fill column 'label'"),
        ("path,label\n{first},dics\n", "an unknown class: 'dics'; known are disc, ring."),
        ("path,label\n{first},disc\nnone.png,disc\n", "1 of 2 labelled images"),
        ("path,label\n{first},disc\n./{first},ring\n", "twice, in lines 2 and 3"),
    ],
)
def test_faults_of_the_labels(
    sites: Path,
    tmp_path: Path,
    failing: Callable[..., str],
    content: str | None,
    message: str,
) -> None:
    file = sites / "same" / "few.csv" if content and "./" in content else tmp_path / "few.csv"
    if content is not None:
        file.write_text(content.format(first=f"{CANARY}_000.png"))
    shown = failing(3, *arguments(sites, "same", "--target-labels", str(file)))
    assert message in shown
    assert shown.count("\n") == 1


def test_faults_of_the_options(sites: Path, tmp_path: Path, failing: Callable[..., str]) -> None:
    assert "--target is missing" in failing(2, "diagnose", "--source", str(sites / "a"))
    assert "--alpah" in failing(2, "diagnose", "--alpah", "0.1")
    assert "0.9" in failing(2, *arguments(sites, "same", "--alpha", "0.9"))
    (tmp_path / "note.txt").touch()
    assert "not an empty folder" in failing(2, *arguments(sites, "same", "--out", str(tmp_path)))
    with pytest.raises(UsageError, match="no option 'epochs'"):
        daptkit.diagnose(source="a", target="b", epochs=3)


def test_every_option_is_one_of_adapt_or_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in (*SHARED, *DiagnoseOptions.__dataclass_fields__):
        assert f"--{name.replace('_', '-')}" in shown
    assert "--epochs" not in shown


def test_patients_at_both_sites_are_told(sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnose(sites, "a", capsys, "--allow-patient-overlap")
    assert any("100 patients are in both the source and the target" in c for c in found["caveats"])


def test_heads_that_say_nothing_are_named(
    sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnosis_facts, "source_accuracy", lambda sites: 0.5)
    found = diagnose(sites, "same", capsys)
    assert any("no more than naming the commonest class (50%)" in c for c in found["caveats"])


def test_logits_of_both_sites_are_unseen() -> None:
    rng = np.random.default_rng(0)
    # Features that are pure noise: a head that had seen an image's patient would know its label.
    x, y = rng.normal(size=(80, 200)), np.arange(80) % 2
    groups = np.repeat(np.arange(40), 2)
    x[1::2] = x[::2] + 0.01 * rng.normal(size=(40, 200))
    y[1::2] = y[::2] = rng.permutation(np.arange(40) % 2)
    t = rng.normal(size=(60, 200))
    z_s, z_t = unseen_logits(x, y, t, source_groups=groups, num_classes=3)
    assert z_s.shape == (80, 3)
    assert (z_s[:, 2] < -5).all()
    assert (z_t[:, 2] < -5).all()
    assert (z_s.argmax(1) == y).mean() < 0.75
    leaked, _ = unseen_logits(x, y, t, num_classes=3)
    assert (leaked.argmax(1) == y).mean() > 0.9


def test_equal_sites_have_equal_logits() -> None:
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        y = (rng.random(160) < 0.2).astype(int)
        x = rng.normal(size=(160, 120)) * np.exp(-np.arange(120) / 30)
        x[:, :5] += 0.5 * y[:, None]
        z_s, z_t = unseen_logits(x[:80], y[:80], x[80:], seed=seed)
        found.append(prior_test(z_s, z_t, permutations=99, seed=seed).p <= 0.05)
    assert sum(found) <= 4


def test_large_sites_are_sampled(
    sites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daptkit.recipes.diagnosis_inputs.MAX_IMAGES", 60)
    monkeypatch.setattr("daptkit.recipes.diagnosis_inputs.MAX_STATISTICS", 40)
    seen: list[Sites] = []
    read = diagnosing.read_sites
    monkeypatch.setattr(diagnosing, "read_sites", lambda c, r: seen.append(read(c, r)) or seen[-1])
    found = diagnose(sites, "same", capsys)
    (both,) = seen
    assert found["data"]["target"]["tested"] == 60 < found["data"]["target"]["images"] == 160
    assert found["data"]["source"]["tested"] == 60
    groups = both.target.groups[both.target.tested]
    assert (np.unique(groups, return_counts=True)[1] == 2).all()
