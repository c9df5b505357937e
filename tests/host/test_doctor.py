"""``daptkit doctor`` on GPUs, plugins, folders and the environment, and what it prints."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from daptkit.doctor import machine
from daptkit.doctor.plugins import VARIABLES
from doctor_fakes import driver, fake_torch, found, make_healthy, put, told

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def healthy(site, monkeypatch, tmp_path):
    return make_healthy(site, monkeypatch, tmp_path)


def test_this_environment_can_run_and_says_what_it_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path))
    code, out = told(capsys, "--json")
    answer = json.loads(out)
    checks = {check["name"]: check for check in answer["checks"]}
    assert (code, answer["ok"]) == (0, True)
    for package in ("torch", "torchvision", "timm"):
        installed = importlib.metadata.version(package).partition("+")[0]
        assert checks[package]["status"] == "ok"
        assert checks[package]["finding"].partition("+")[0] == installed
    assert sys.executable in checks["python"]["finding"]
    shown = checks["plugins"]["finding"]
    assert all(name in shown for name in ("bbse", "cdan", "coral", "dann", "jmmd", "mmd"))


def test_all_is_well(healthy, capsys):
    code, out = told(capsys)
    assert code == 0
    rows = out.splitlines()
    assert rows[-2:] == ["", "Runs can work."]
    assert {row.split()[0] for row in rows[:-2]} == {"ok"}
    assert len({len(row) - len(row.split(maxsplit=2)[2]) for row in rows[:-2]}) == 1


def test_only_cache_and_interpreter_are_shown_as_paths(healthy, capsys):
    healthy.method("broken-pkg", "broken", source="raise OSError('gone')")
    _, out = told(capsys)
    shown = out.replace(os.environ["DAPTKIT_CACHE"], "").replace(sys.executable, "")
    assert not re.findall(r"(?<!\w)/\w+/\S*", shown)


def test_an_old_python(healthy, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert "3.11" in machine.check_python().cure


GPU = (70 * 2**30, 80 * 2**30)


@pytest.mark.parametrize(
    ("torch", "with_driver", "hidden", "status", "text"),
    [
        ({}, False, None, "ok", "no NVIDIA driver; runs use the CPU"),
        ({"built": "13.0"}, False, None, "ok", "no NVIDIA driver; runs use the CPU"),
        ({"built": "13.0", "gpus": [GPU]}, True, None, "ok", "CUDA 13.0, driver 570.86.15"),
        ({}, True, None, "warning", "driver 570.86.15 is there, but this torch was built for CPUs"),
        (
            {"built": "13.0", "reason": "The NVIDIA driver on your system is too old"},
            True,
            None,
            "warning",
            "with driver 570.86.15: The NVIDIA driver on your system is too old",
        ),
        ({"built": "13.0"}, True, "", "warning", "CUDA_VISIBLE_DEVICES= hides the GPUs"),
    ],
)
def test_cuda_and_driver(healthy, monkeypatch, torch, with_driver, hidden, status, text):
    put(healthy, torch=fake_torch(**torch))
    if with_driver:
        driver()
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check = found()["cuda"]
    assert check.status == status
    assert text in check.finding
    assert bool(check.cure) == (status != "ok")


def test_gpus(healthy, capsys):
    driver()
    put(healthy, torch=fake_torch(built="13.0", gpus=[GPU, (2**30, 80 * 2**30)]))
    checks = found()
    assert checks["gpu 0"].finding == "Fake H100, 70.0 GB of 80.0 GB free"
    assert [checks[n].status for n in ("cuda", "gpu 0", "gpu 1")] == ["ok", "ok", "warning"]


def test_a_gpu_that_this_torch_has_no_kernels_for(healthy, capsys):
    product = "raise RuntimeError('no kernel image is available for execution on the device')"
    put(healthy, torch=fake_torch(built="13.0", gpus=[GPU], product=product))
    code, out = told(capsys)
    assert code == 1
    line, cure = re.search(r"error +gpu 0 +(.*)\n +-> (.*)", out).groups()
    assert "no kernel image is available" in line
    assert "--device cpu" in cure


def test_a_driver_that_takes_the_process_down(healthy):
    source = fake_torch(built="13.0", gpus=[GPU], product="import os; os.abort()")
    put(healthy, torch=source)
    checks = found()
    assert checks["cuda"].status == "error"
    assert "SIGABRT" in checks["cuda"].finding
    assert checks["timm"].status == checks["torch"].status == "ok"


def test_a_driver_tool_that_fails(healthy):
    driver("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert "driver unknown is there" in found()["cuda"].finding


def test_broken_plugins_are_warnings_with_their_reason(healthy, capsys):
    healthy.method("good-pkg", "good")
    healthy.method("broken-pkg", "broken", source="raise OSError('libfoo is missing')")
    healthy.method("other-pkg", "dann")
    code, out = told(capsys)
    assert code == 0
    assert re.search(r"ok +plugins .*methods .*bbse, .*good", out)
    assert re.search(r"warning +method broken +broken-pkg 1\.0: .*libfoo is missing", out)
    assert "-> upgrade or uninstall broken-pkg, or set DAPTKIT_DISABLE=broken-pkg" in out
    assert re.search(r"warning +method dann +other-pkg 1\.0: .*taken by daptkit-dann", out)


def test_no_plugin_at_all(healthy, monkeypatch):
    names = {e.name for e in importlib.metadata.entry_points(group="daptkit")}
    monkeypatch.setenv("DAPTKIT_DISABLE", ",".join(names))
    check = found()["plugins"]
    assert check.status == "warning"
    assert "only -m none" in check.finding
    assert "bbse" in check.finding.split("switched off")[1]


def test_a_timeout_that_is_no_number_stops_every_run(healthy, monkeypatch, capsys):
    monkeypatch.setenv("DAPTKIT_PLUGIN_TIMEOUT", "soon")
    code, out = told(capsys)
    assert code == 1
    assert re.search(r"error +plugins +DAPTKIT_PLUGIN_TIMEOUT takes a positive number", out)


def test_cache_and_working_folder(healthy, monkeypatch, tmp_path):
    cache = tmp_path / "DAPTKIT_CACHE"
    assert found()["cache"].finding.startswith(f"{cache}, 0 MB used, ")
    assert not cache.exists()
    (cache / "features").mkdir(parents=True)
    with (cache / "features" / "x.safetensors").open("wb") as file:
        file.truncate(3 * 2**20)
    assert found()["cache"].finding.startswith(f"{cache}, 3 MB used, ")


def test_folders_that_cannot_be_written_or_are_full(healthy, monkeypatch, tmp_path):
    real = tempfile.TemporaryFile

    def refusing(*arguments, dir=None, **options):
        if dir is not None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(*arguments, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    checks = found()
    for name, cure in (("cache", "DAPTKIT_CACHE"), ("disk", "--out")):
        assert checks[name].status == "warning"
        assert "Read-only file system" in checks[name].finding
        assert cure in checks[name].cure


def test_a_disk_that_is_nearly_full(healthy, monkeypatch):
    class Usage:
        free = 300 * 2**20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    checks = found()
    assert checks["disk"].status == checks["cache"].status == "warning"
    assert "300 MB free" in checks["disk"].finding


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.max").write_text("max\n")
    whole = machine.free_memory()
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert machine.free_memory() == 2**30 < whole
    assert machine.check_machine().status == "warning"


def test_variables_that_mean_nothing(healthy, monkeypatch):
    monkeypatch.setenv("DAPTKIT_CASHE", "x")
    check = found()["environment"]
    assert check.status == "warning"
    assert "DAPTKIT_CASHE means nothing" in check.finding
    assert check.cure == "Did you mean 'DAPTKIT_CACHE'?"


def test_the_known_variables_are_those_that_the_code_reads():
    files = [f for f in ROOT.glob("daptkit/**/*.py") if "doctor" not in f.parts]
    text = "".join(f.read_text() for f in [*files, ROOT / "tests" / "conftest.py"])
    assert set(VARIABLES) == set(re.findall(r"DAPTKIT_[A-Z_]+", text))
