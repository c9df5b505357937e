"""What methods do at prediction, kept in a model folder and brought back from it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aligners import install_shade
from daptkit.errors import DataError, PluginError
from daptkit.host import load_methods
from daptkit.method import TaskInfo
from daptkit.model import load_model_folder, save_model_folder
from daptkit.model.alignments import ALIGNMENTS_FILE, StoredAlignment
from daptkit.plugin import build_options
from daptkit.train.alignments import Alignments, load_alignments, stored_alignment
from tiny_nets import tiny_net

TASK = TaskInfo(
    classes=("a", "b", "c"),
    dims={"features": 8, "logits": 3},
    source_prior=torch.tensor([0.7, 0.2, 0.1]),
    n_source=70,
    n_target=50,
)
IMAGES = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def fitted(roles: Sequence[str] = ("inputs",), **options: Any) -> tuple[StoredAlignment, Tensor]:
    """Return what is stored of a fitted method, and what it makes of the images."""
    loaded = load_methods(["shade"])[0]
    made = build_options(loaded.spec.options, options, "shade.")
    method = loaded.create(made, TASK)
    method.fit_images(IMAGES, 0.5 * IMAGES)
    stored = stored_alignment(loaded, method, made, frozenset(roles))
    return stored, method.align_images(IMAGES, "target")


def save(folder: Path, *alignments: StoredAlignment) -> None:
    net = tiny_net(in_chans=1)
    save_model_folder(
        folder,
        net,
        net.config,
        classes=TASK.classes,
        conversion={},
        rule={},
        alignments=alignments,
    )


def brought_back(folder: Path, log: list[str] | None = None) -> Alignments:
    return load_alignments(
        load_model_folder(folder).alignments, ([] if log is None else log).append
    )


def forget(site: Any, version: str = "1.3") -> None:
    """Uninstall the package."""
    shutil.rmtree(site.folder / f"fake_shade-{version}.dist-info")
    for module in ("plugin_shade", "plugin_shade_method"):
        (site.folder / f"{module}.py").unlink()
        sys.modules.pop(module, None)


def test_a_method_comes_back_with_state_and_options(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    stored, expected = fitted(strength=0.5, table_file="tables/patient_7.csv")
    save(tmp_path / "model", stored)
    lines: list[str] = []
    torch.manual_seed(5)
    draw = torch.rand(3)
    torch.manual_seed(5)
    found = brought_back(tmp_path / "model", lines)
    assert torch.equal(torch.rand(3), draw)
    assert torch.equal(found.align_images(IMAGES, "target"), expected.clamp(0, 1))
    assert torch.equal(found.align_images(IMAGES, "source"), IMAGES)
    # Nobody owns the features.
    assert torch.equal(found.align_features(torch.ones(2, 8), "target"), torch.ones(2, 8))
    method = found.owners["inputs"].method
    assert (method.task.n_source, method.task.classes) == (70, TASK.classes)
    assert torch.equal(method.task.source_prior, TASK.source_prior)
    assert lines == []
    meta = json.loads((tmp_path / "model" / "model.json").read_text())
    assert meta["format"] == 2
    assert meta["requires"] == ["fake-shade"]
    assert "patient_7" not in json.dumps(meta)


def test_a_model_without_alignment_keeps_its_format(tmp_path: Path) -> None:
    save(tmp_path / "model")
    meta = json.loads((tmp_path / "model" / "model.json").read_text())
    assert (meta["format"], "alignments" in meta) == (1, False)
    assert not (tmp_path / "model" / ALIGNMENTS_FILE).exists()
    assert load_model_folder(tmp_path / "model").alignments == ()


def test_statistics_of_normalisation_layers_need_no_package(site: Any, tmp_path: Path) -> None:
    norm = {"backbone.bn": (torch.ones(4), torch.full((4,), 2.0))}
    stored = StoredAlignment(
        method="gone", package="gone", version="1", roles=frozenset({"norm"}), task=TASK, norm=norm
    )
    save(tmp_path / "model", stored)
    mean, variance = brought_back(tmp_path / "model").norm["backbone.bn"]
    assert torch.equal(mean, norm["backbone.bn"][0])
    assert torch.equal(variance, norm["backbone.bn"][1])


def test_several_roles_and_methods(site: Any, tmp_path: Path) -> None:
    install_shade(site, roles='"inputs", "features"')
    stored, _ = fitted(roles=("inputs", "features"))
    save(tmp_path / "model", stored)
    found = brought_back(tmp_path / "model")
    assert set(found.owners) == {"inputs", "features"}
    assert torch.equal(found.align_features(torch.ones(2, 8), "target"), torch.full((2, 8), 2.0))


def test_a_missing_package_is_named(site: Any, tmp_path: Path, monkeypatch: Any) -> None:
    install_shade(site)
    save(tmp_path / "model", fitted()[0])
    monkeypatch.setenv("DAPTKIT_DISABLE", "shade")
    with pytest.raises(PluginError, match=r"'shade' of fake-shade 1.3 .* pip install fake-shade"):
        brought_back(tmp_path / "model")
    monkeypatch.delenv("DAPTKIT_DISABLE")
    forget(site)
    with pytest.raises(PluginError, match=r"not installed. Install it: pip install fake-shade"):
        brought_back(tmp_path / "model")


def test_another_major_version_is_told(site: Any, tmp_path: Path) -> None:
    install_shade(site)
    stored, expected = fitted()
    save(tmp_path / "model", stored)
    forget(site)
    install_shade(site, "1.9")
    lines: list[str] = []
    brought_back(tmp_path / "model", lines)
    assert lines == []
    forget(site, "1.9")
    install_shade(site, "2.0")
    found = brought_back(tmp_path / "model", lines)
    assert torch.equal(found.align_images(IMAGES, "target"), expected.clamp(0, 1))
    assert lines == [
        "warning: the model was trained with method 'shade' of fake-shade 1.3; here is"
        " fake-shade 2.0."
    ]


def test_a_version_that_does_not_fit(site: Any, tmp_path: Path) -> None:
    install_shade(site, extra='curve: str = option("s", "Form.")')
    save(tmp_path / "model", fitted(curve="z")[0])
    forget(site)
    install_shade(site, "1.4")
    with pytest.raises(DataError, match=r"fake-shade 1.4: unknown option 'shade.curve'"):
        brought_back(tmp_path / "model")
    forget(site, "1.4")
    install_shade(site, "1.5", extra='curve: str = option("s", "Form.")', shape="3")
    with pytest.raises(DataError, match=r"fake-shade 1.3 does not fit .* 1.5: size mismatch"):
        brought_back(tmp_path / "model")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "altered or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "altered or damaged"),
    ],
)
def test_damage_is_found(site: Any, tmp_path: Path, damage: Any, words: str) -> None:
    install_shade(site)
    save(tmp_path / "model", fitted()[0])
    damage(tmp_path / "model" / ALIGNMENTS_FILE)
    with pytest.raises(DataError, match=f"{ALIGNMENTS_FILE}.*{words}"):
        load_model_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return images[:2]", r"align_images\(\) returned shape \(2, 1, 6, 6\) for \(5, 1, 6, 6\)"),
        ("return images / 0.0", r"align_images\(\) returned a value that is not finite"),
        ("return None", r"align_images\(\) returned NoneType, not a tensor"),
        ("raise ValueError('bad')", r"failed in align_images\(\): ValueError: bad"),
    ],
)
def test_a_broken_method_is_named(site: Any, body: str, words: str) -> None:
    install_shade(site)
    stored, _ = fitted()
    owners = load_alignments([stored], lambda _: None)
    method: Any = owners.owners["inputs"].method
    space: dict[str, Any] = {}
    exec(f"def broken(images, domain): {body}", space)
    method.align_images = space["broken"]
    with pytest.raises(PluginError, match=rf"'shade' \(fake-shade 1.3\).*{words}"):
        owners.align_images(IMAGES, "target")


def test_results_are_clipped_and_the_images_left_alone(site: Any) -> None:
    install_shade(site)
    owners = load_alignments([fitted()[0]], lambda _: None)
    method: Any = owners.owners["inputs"].method
    method.align_images = lambda images, domain: images.mul_(3).sub_(1)
    before = IMAGES.clone()
    found = owners.align_images(IMAGES, "target")
    assert torch.equal(IMAGES, before)
    assert torch.equal(found, (before * 3 - 1).clamp(0, 1))
