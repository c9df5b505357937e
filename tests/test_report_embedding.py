"""The embedding of the report: which images, PCA, and the child process of UMAP."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from daptkit.report import umap_child
from daptkit.report.embedder import Embedder
from daptkit.report.embedding import (
    EmbeddedPoint,
    by_pca,
    sample_rows,
    why_not_umap,
    write_points,
)
from daptkit.run import RunFolder

SCRIPT = Path(umap_child.__file__)
FAKE_UMAP = """
import sys, types, runpy
class UMAP:
    def __init__(self, **given): self.seed = given["random_state"]
    def fit_transform(self, x):
        print("chatter on stdout", flush=True)
        return x[:, :2] + self.seed
sys.modules["umap"] = types.SimpleNamespace(UMAP=UMAP)
"""
READY = "import sys; print('{\"error\": null}', flush=True)\n"


def features(n: int = 120, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.arange(d, 0, -1)


def command(code: str, *, script: bool = False) -> list[str]:
    run = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')" if script else ""
    return [sys.executable, "-c", code + run]


def test_sample_rows_is_a_sorted_subset_that_the_seed_decides() -> None:
    rows = np.arange(100, 400)
    drawn = sample_rows(rows, 50, 3)
    assert len(set(drawn.tolist())) == 50
    assert set(drawn.tolist()) <= set(rows.tolist())
    assert (np.diff(drawn) > 0).all()
    assert (drawn == sample_rows(rows, 50, 3)).all()
    assert (drawn != sample_rows(rows, 50, 4)).any()
    assert sample_rows(np.array([7, 3, 5]), 50, 0).tolist() == [3, 5, 7]


def test_pca_has_the_largest_variances_of_the_covariance() -> None:
    x = features()
    found = by_pca([x], "because")
    assert (found.kind, found.why_pca) == ("pca", "because")
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert np.allclose(np.cov(found.panels[0].T), np.diag(values[:2]))


def test_pca_has_one_sign_whatever_the_order_of_images() -> None:
    x = features()
    order = np.random.default_rng(1).permutation(len(x))
    straight, mixed = by_pca([x, x[order]], "").panels
    assert np.allclose(straight[order], mixed)


@pytest.mark.parametrize(
    "odd",
    [np.ones((40, 3)), np.full((40, 3), np.nan), np.full((40, 3), np.inf), np.ones((1, 1))],
    ids=["constant", "nan", "inf", "one-number"],
)
def test_pca_of_odd_features_is_finite(odd: np.ndarray) -> None:
    assert np.isfinite(by_pca([odd], "").panels[0]).all()
    assert by_pca([odd], "").panels[0].shape == (len(odd), 2)


def test_pca_of_one_feature_keeps_it() -> None:
    x = np.arange(9.0)[:, None]
    assert np.allclose(np.abs(by_pca([x], "").panels[0][:, 0]), np.abs(x[:, 0] - 4))


def test_umap_is_not_tried_where_it_would_say_nothing() -> None:
    assert why_not_umap([features()]) is None
    assert "99 images" in str(why_not_umap([features(99)]))
    assert "alike" in str(why_not_umap([features(), np.ones((120, 5))]))
    broken = features()
    broken[3, 2] = np.nan
    assert "not finite" in str(why_not_umap([broken]))


def test_few_points_cost_no_process() -> None:
    with Embedder() as embedder:
        projection = embedder.embed([features(20)], 0).result()
        assert not embedder.started
    assert projection.kind == "pca"


def test_protocol_with_a_chatty_library() -> None:
    panels = [features(130, 4, 1), features(110, 7, 2)]
    with Embedder(command=command(FAKE_UMAP, script=True), limit=60) as embedder:
        found = embedder.embed(panels, 5).result()
    assert (found.kind, found.why_pca) == ("umap", None)
    for panel, given in zip(found.panels, panels, strict=True):
        assert np.allclose(panel, given[:, :2] + 5, atol=1e-5)


@pytest.mark.parametrize(
    ("code", "script", "reason"),
    [
        ("import sys; sys.exit(3)", False, "ended (exit status 3)"),
        ("import os; os.kill(os.getpid(), 9)", False, "ended (signal SIGKILL)"),
        (READY + "sys.stdin.readline(); sys.exit(4)", False, "ended (exit status 4)"),
        ("print('<html>')", False, "no readable answer"),
        ("print('[1]')", False, "no readable answer"),
        (READY + "print('{\"error\": null}'); print('few')", False, "ended (exit status 0)"),
        (
            READY + "print('{\"error\": null}', flush=True);"
            " sys.stdout.buffer.write(b'\\xff' * 8 * 120)",
            False,
            "not finite",
        ),
        ("import sys; sys.modules['umap'] = None\n", True, "umap-learn is not installed"),
        (FAKE_UMAP.replace("return", "raise MemoryError('/secret/x');"), True, "(MemoryError)"),
    ],
)
def test_a_faulty_process_costs_a_pca_with_the_reason(code: str, script: bool, reason: str) -> None:
    panels = [features(), features(seed=1)]
    with Embedder(command=command(code, script=script), limit=60) as embedder:
        found = embedder.embed(panels, 0).result()
    assert found.kind == "pca"
    assert reason in str(found.why_pca)
    assert "/" not in str(found.why_pca)
    assert all(
        np.allclose(a, b) for a, b in zip(found.panels, by_pca(panels, "").panels, strict=True)
    )


def test_a_hanging_process_costs_the_limit_and_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    # The grandchild holds the same pipes: it must end as well.
    code = (
        "import os, subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']);"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}'); time.sleep(300)"
    )
    began = time.monotonic()
    with Embedder(command=command(code), limit=1.5) as embedder:
        pending = embedder.embed([features(2000, 600), features(2000, 600)], 0)
        assert time.monotonic() - began < 1.0
        found = pending.result()
    assert time.monotonic() - began < 20
    assert (found.kind, found.why_pca) == ("pca", "UMAP took longer than 1.5 s.")
    for pid in note.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_process_that_cannot_start_costs_a_pca(tmp_path: Path) -> None:
    with Embedder(command=[str(tmp_path / "missing")]) as embedder:
        found = embedder.embed([features()], 0).result()
    assert (found.kind, found.why_pca) == (
        "pca",
        "The process for UMAP did not start (FileNotFoundError).",
    )


def test_closing_without_asking_ends_a_busy_process() -> None:
    began = time.monotonic()
    with Embedder(command=command("import time; time.sleep(300)")) as embedder:
        embedder.embed([features()], 0)
    assert time.monotonic() - began < 20


def test_child_tells_errors_by_type_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(features: object, seed: int) -> None:
        raise ValueError("/secret/path")

    monkeypatch.setattr(umap_child, "embed", fail)
    answers = io.BytesIO()
    x = np.zeros((2, 3), np.float32)
    request = json.dumps({"shape": [2, 3], "seed": 0}).encode() + b"\n" + x.tobytes()
    umap_child.serve(io.BytesIO(request), answers)
    assert answers.getvalue() == b'{"error": "ValueError"}\n' * 2


def test_real_umap() -> None:
    pytest.importorskip("umap")
    with Embedder() as embedder:
        found = embedder.embed([features(120, 16)], 0).result()
    assert (found.kind, found.why_pca) == ("umap", None)
    assert found.panels[0].shape == (120, 2)
    assert np.isfinite(found.panels[0]).all()
    assert found.panels[0].std(axis=0).min() > 0


def test_points_are_written_as_a_table(tmp_path: Path) -> None:
    point = EmbeddedPoint(
        model="adapted",
        domain="target",
        row=3,
        class_name='odd, "name"',
        class_is="predicted",
        x=1.23456789,
        y=-2.0,
    )
    write_points(RunFolder(tmp_path), [point])
    assert (tmp_path / "embedding.csv").read_text().splitlines() == [
        "model,domain,row,class,class_is,x,y",
        'adapted,target,3,"odd, ""name""",predicted,1.23457,-2',
    ]
