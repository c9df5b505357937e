"""Reports that go wrong, and what a report may not tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import daptkit.recipes.adapting
import daptkit.report.embedder
import report_data
from daptkit.errors import DaptkitError
from daptkit.recipes import adapt, build_report
from daptkit.report import umap_child
from daptkit.report.page import write_page
from daptkit.run import RunFolder
from report_runs import CANARY, backbone_weights, dead_embedder, report_config


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daptkit.recipes.adapting, "Embedder", dead_embedder)
    monkeypatch.setattr(daptkit.report.embedder, "Embedder", dead_embedder)


@pytest.mark.usefixtures("no_umap")
def test_no_name_reaches_what_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary is in folders, file names, patients, weights and --out, one image is broken."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    config = report_config(
        tmp_path,
        method="coral+bbse",
        finetune="frozen",
        pretrained_path=str(backbone_weights(tmp_path)),
        skip_unreadable=1,
    )
    (tmp_path / CANARY / "b" / f"{CANARY}-3.png").write_bytes(b"no image")
    first = adapt(config)
    build_report(first.out, remeasure=True, device="cpu")
    roots = (first.out, tmp_path / "cache")
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names >= {"report.html", "report.json", "embedding.csv", "stages.svg", "metrics.jsonl"}
    assert {path.suffix for path in files} >= {".ckpt", ".safetensors"}
    leaks = {path.name for path in files if CANARY.encode() in path.read_bytes()}
    assert leaks == {"run.toml", "predictions.csv"}
    # Figures are encoded in the page, and are the very files that were searched above.
    assert not [name for name in names if CANARY in name]
    assert str(tmp_path) not in (first.out / "report.html").read_text()


@pytest.mark.usefixtures("no_umap")
def test_a_failing_report_does_not_read_like_a_lost_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    with monkeypatch.context() as patched:
        patched.setattr("daptkit.report.build.write_page", fail)
        with pytest.raises(DaptkitError) as raised:
            adapt(report_config(tmp_path))
    out = tmp_path / CANARY / "run"
    assert raised.value.exit_code == 1
    assert str(raised.value) == (
        f"the model is written in '{out}', but its report is not: ZeroDivisionError: division by"
        f" zero. Build it with 'daptkit report {out}'."
    )
    assert (out / "model" / "model.safetensors").is_file() and (out / "run.json").is_file()
    assert build_report(out, device="cpu").is_file()


@pytest.mark.parametrize("lines", [0, 1, 20])
def test_points_that_are_cut_off_are_told(tmp_path: Path, lines: int) -> None:
    folder = RunFolder(report_data.write_run(tmp_path, report_data.small_report()))
    whole = folder.embedding.read_text().splitlines(keepends=True)
    folder.embedding.write_text("".join(whole[:lines]))
    with pytest.raises(DaptkitError, match=r"does not hold the points .* --remeasure"):
        write_page(folder)
    folder.embedding.write_text("".join(whole))
    assert write_page(folder).is_file()


def test_the_process_for_umap_ends_with_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "umap.py").write_text("import time; time.sleep(120)")
    parent = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, subprocess, sys;"
            f" child = subprocess.Popen([sys.executable, {umap_child.__file__!r}],"
            " stdin=subprocess.PIPE, stdout=subprocess.DEVNULL);"
            " print(child.pid, flush=True);"
            " import time; time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    state = Path(f"/proc/{int(parent.stdout)}/stat")
    until = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.1)
    assert not state.exists() or state.read_text().split()[2] == "Z"
