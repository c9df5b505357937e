"""``daptkit doctor`` on packages that are missing, broken, slow or do not fit each other."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import time

import pytest

from daptkit.doctor.torch_stack import matching_torchvision
from doctor_fakes import found, make_healthy, put, told

NMS = "raise RuntimeError('operator torchvision::nms does not exist')"


@pytest.fixture
def healthy(site, monkeypatch, tmp_path):
    return make_healthy(site, monkeypatch, tmp_path)


def test_a_torchvision_of_another_torch_is_named_with_its_cure(healthy, capsys):
    put(healthy, torchvision=NMS)
    healthy.install("torchvision", {}, {}, version="0.20.1")
    code, out = told(capsys)
    assert code == 1
    line, cure = re.search(r"error +torchvision +(.*)\n +-> (.*)", out).groups()
    assert "torchvision 0.20.1" not in line.split("goes with")[1]
    assert line.startswith(
        "0.20.1 does not fit torch 2.14.1+cu130, which goes with torchvision 0.29"
    )
    assert "operator torchvision::nms does not exist" in line
    assert '"torch==2.14.*" "torchvision==0.29.*"' in cure
    assert re.search(r"error +timm .*needs torchvision", out)
    assert out.endswith("No run can work yet: repair torchvision, timm.\n")


def test_a_torchvision_built_for_another_device(healthy):
    put(healthy, torchvision=NMS)
    healthy.install("torchvision", {}, {}, version="0.29.1+cpu")
    check = found()["torchvision"]
    assert check.status == "error"
    assert (
        "0.29.1+cpu does not fit torch 2.14.1+cu130: they were built for different" in check.finding
    )


def test_a_pair_that_imports_and_was_not_released_together(healthy, capsys):
    put(healthy, torchvision='__version__ = "0.30.0"')
    assert told(capsys)[0] == 0
    check = found()["torchvision"]
    assert check.status == "warning"
    assert "goes with torchvision 0.29" in check.finding


def test_a_torchvision_that_fails_for_another_reason(healthy):
    put(healthy, torchvision='raise OSError("libjpeg.so.8 is missing")')
    healthy.install("torchvision", {}, {}, version="0.29.1")
    check = found()["torchvision"]
    assert check.status == "error"
    assert check.finding == "0.29.1 cannot be imported: OSError: libjpeg.so.8 is missing"


@pytest.mark.parametrize(
    ("torch", "torchvision"),
    [
        ("2.0.1", "0.15"),
        ("2.4.1+cu121", "0.19"),
        ("2.9.0+cu128", "0.24"),
        ("2.14.1", "0.29"),
        ("1.13.1", ""),
        ("", ""),
    ],
)
def test_series_that_were_released_together(torch, torchvision):
    assert matching_torchvision(torch) == torchvision


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import time\ntime.sleep(60)", "it took more than 1.5 s"),
        ("import os; os._exit(7)", "it ended the process (exit status 7)"),
        ("import os; os._exit(0)", "it ended the process"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("import missing_library", "No module named 'missing_library'"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_a_finding(healthy, source, reason):
    put(healthy, torch=source)
    started = time.monotonic()
    checks = found(limit=1.5)
    assert time.monotonic() - started < 12
    assert checks["torch"].status == "error"
    assert reason in checks["torch"].finding
    assert "pip install --force-reinstall" in checks["torch"].cure
    assert [checks[n].cure for n in ("torchvision", "timm", "cuda")] == ["first repair torch"] * 3
    assert checks["packages"].status == checks["plugins"].status == "ok"


def test_what_a_module_starts_and_prints_does_not_hold_the_doctor_up(healthy):
    noise = "import os, time\nos.write(1, b'noise')\nprint('noise')\n"
    noise += "if os.fork() == 0:\n    time.sleep(20)\n    os._exit(0)\n"
    put(healthy, timm=noise)
    started = time.monotonic()
    assert found()["timm"].status == "ok"
    assert time.monotonic() - started < 10


def test_a_missing_torch(healthy, capsys):
    put(healthy, torch="raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    check = found()["torch"]
    assert (check.status, check.finding) == ("error", "not installed")
    assert re.fullmatch(r'pip install "torch>=2\.\d+"', check.cure)


def test_packages_that_are_missing_broken_or_too_old(healthy, capsys):
    put(
        healthy,
        sklearn="raise ImportError('numpy.core.multiarray failed to import')",
        tifffile='__version__ = "2020.1.1"',
        scipy="raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy')",
    )
    checks = found()
    assert checks["scikit-learn"].status == "error"
    assert "numpy.core.multiarray failed to import" in checks["scikit-learn"].finding
    assert (checks["scipy"].status, checks["scipy"].finding) == ("error", "not installed")
    assert checks["tifffile"].status == "warning"
    assert checks["tifffile"].finding.startswith("2020.1.1 ")
    assert '"tifffile>=' in checks["tifffile"].cure
    good = checks["packages"].finding
    assert "pillow" in good
    assert not any(name in good for name in ("scikit-learn", "tifffile", "scipy"))


@pytest.mark.parametrize(
    "source",
    [
        "raise ModuleNotFoundError(\"No module named 'umap'\", name='umap')",
        "raise ImportError('Numba needs NumPy 2.2 or less')",
    ],
)
def test_without_umap_runs_work(healthy, monkeypatch, capsys, source):
    listed = [*importlib.metadata.requires("daptkit"), "umap-learn>=0.5.12"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    put(healthy, umap=source)
    code, out = told(capsys)
    assert code == 0
    assert re.search(
        r"warning +umap-learn .*PCA instead of UMAP\n +-> pip install .*umap-learn", out
    )
    assert out.endswith("Runs can work; look at umap-learn.\n")


def test_daptkit_that_was_not_installed(healthy, monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    monkeypatch.setattr(importlib.metadata, "version", unknown)
    checks = found()
    assert checks["daptkit"].status == "warning"
    assert "not installed as a package" in checks["daptkit"].finding
    assert checks["torch"].status == "ok"


def test_without_the_reader_of_requirements(healthy, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    checks = found()
    assert checks["packaging"].cure == "pip install packaging"
    assert checks["torch"].status == "ok"


def test_metadata_of_another_version(healthy):
    healthy.install("daptkit", {}, {}, version="0.0.9")
    check = found()["daptkit"]
    assert check.status == "warning"
    assert "installed as 0.0.9" in check.finding
