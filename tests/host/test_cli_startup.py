"""Nothing that answers before a run imports torch, numba or numpy."""

from __future__ import annotations

import json
import re

import pytest

HEAVY = {"torch", "numba", "numpy", "scipy", "sklearn", "timm", "PIL"}
COMMANDS = [
    ("--help",),
    ("plugins", "list"),
    ("adapt", "--help"),
    ("adapt", "-m", "alpha", "--help"),
    ("predict", "--help"),
    ("evaluate", "--help"),
    ("report", "--help"),
    ("demo", "--help"),
    ("data", "--help"),
    ("data", "check", "--help"),
    ("data", "simulate", "--help"),
    ("data", "cache", "--help"),
    ("doctor", "--help"),
]


def imported(stderr: str) -> set[str]:
    return set(re.findall(r"^import time:.*\|\s*([\w.]+)$", stderr, flags=re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_heavy_import(site, command):
    site.method("alpha-pkg", "alpha")
    done = site.run("-X", "importtime", "-m", "daptkit", *command)
    assert done.returncode == 0, done.stderr
    modules = imported(done.stderr)
    assert "daptkit.cli.main" in modules
    assert not {name.partition(".")[0] for name in modules} & HEAVY


def test_the_check_sees_a_heavy_import(site):
    assert "numpy" in imported(site.run("-X", "importtime", "-c", "import numpy").stderr)


def test_the_child_of_plugins_list_imports_nothing_heavy(site):
    """A plugin tells which modules its process holds: the factory's torch is not among them."""
    module = site.method("spy", "spy")
    path = site.folder / f"{module}.py"
    path.write_text(
        "import json, sys\n"
        + path.read_text().replace(
            'summary="Aligns spy."', "summary=json.dumps(sorted(sys.modules))"
        )
    )
    done = site.run("-m", "daptkit", "plugins", "list", "--json", DAPTKIT_DISABLE="")
    (spy,) = [row for row in json.loads(done.stdout) if row["name"] == "spy"]
    modules = set(json.loads(spy["summary"]))
    assert "daptkit.host.probe" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("module", ["plugin", "config", "errors", "run", "host", "cli.main"])
def test_light_modules_stay_light(site, module):
    code = f"import sys, daptkit.{module}; print(*sys.modules)"
    names = site.run("-c", code).stdout.split()
    assert f"daptkit.{module}" in names
    assert not set(names) & HEAVY


def test_the_entry_point_exits_with_the_commands_code(site):
    assert site.run("-m", "daptkit", "nothing").returncode == 2
