"""The seven methods as the host meets them, and an installation without pytorch-adapt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from daptkit.host import load_methods
from daptkit.method import Method
from daptkit.testing import imports_torch
from daptkit.train.loop import Trainer
from daptkit_pytorch_adapt.plugin import daptkit_methods
from fakes import in_process, make_job, tiny_config, write_weights

NAMES = ("mcc", "bnm", "infomax", "afn", "bsp", "vat", "mcd")


def test_specifications_are_what_the_host_accepts() -> None:
    assert [spec.name for spec in daptkit_methods()] == list(NAMES)
    assert [m.spec.name for m in load_methods(NAMES)] == list(NAMES)
    assert not imports_torch("daptkit_pytorch_adapt.plugin")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_a_model(name: str, tmp_path: Path) -> None:
    (loaded,) = load_methods([name])
    config = tiny_config(tmp_path, guard=False)
    job, _ = make_job(config, loaded)
    Trainer(job).run()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["values"] for line in lines if '"step"' in line]
    own = {key for key in steps[0] if key.startswith(f"{name}/")}
    assert own
    assert all(value is not None for values in steps for value in values.values())


def test_vat_leaves_running_statistics_to_the_batches(tmp_path: Path) -> None:
    """The statistics after one epoch are those of a run whose further forwards are not counted."""
    weights = write_weights(tmp_path)
    means = {}
    for name, epsilon in (("vat", 0.0), ("none", None)):
        config = tiny_config(
            tmp_path,
            **weights,
            in_chans=1,
            guard=False,
            lr=0.0,
            weight_decay=0.0,
            out=str(tmp_path / name),
        )
        methods = load_methods([name]) if epsilon is not None else [in_process(Method, "still")]
        job, _ = make_job(config, *methods)
        Trainer(job).run()
        means[name] = {k: v for k, v in job.net.state_dict().items() if "running" in k}
    assert means["vat"]
    torch.testing.assert_close(means["vat"], means["none"])


def test_without_pytorch_adapt_the_rest_works(tmp_path: Path) -> None:
    """As setuptools 82 leaves it: what imports pkg_resources fails."""
    (tmp_path / "pkg_resources.py").write_text("raise ModuleNotFoundError('pkg_resources is gone')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from daptkit.errors import PluginError\n"
        "from daptkit.host import load_methods\n"
        "for loaded in load_methods(['mcc', 'afn', 'vat', 'coral', 'mcd']):\n"
        "    try: print(loaded.load_factory().__name__)\n"
        "    except PluginError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    *well, broken = done.stdout.splitlines()
    assert well == ["MCC", "AFN", "VAT", "CORAL"]
    assert "daptkit-pytorch-adapt 0.1.0" in broken
    assert "pytorch-adapt cannot be imported (pkg_resources is gone)" in broken
    assert "setuptools<81" in broken
