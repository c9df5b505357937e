"""Broken plugins, installed together, each cost one line and nothing else."""

from __future__ import annotations

import json
import sys

import pytest

from daptkit.host import list_plugins

HEAD = "from daptkit.plugin import MethodSpec, hookimpl\n"
HOOK = HEAD + "@hookimpl\ndef daptkit_methods():\n    return "
SPEC = "MethodSpec(name='NAME', summary='Good.', factory='MODULE_method:Aligner'{})"

SIX = {
    "broken-raises": ("raises", "raise OSError('libfoo is missing')", "libfoo is missing"),
    "broken-misspelt": (
        "misspelt",
        HEAD + "@hookimpl\ndef daptkit_metods():\n    return " + SPEC.format(""),
        "Did you mean 'daptkit_methods'?",
    ),
    "broken-duplicate": ("dann", "raise SystemError('imported')", "is taken by daptkit-dann"),
    "broken-api": ("too_new", HOOK + SPEC.format(", api=99"), "API version 99"),
    "broken-value": ("not_a_spec", HOOK + "{'name': 'not_a_spec'}", "str, not a MethodSpec"),
    "broken-factory": (
        "factory_missing",
        HOOK + SPEC.format("").replace(":Aligner", ":Missing"),
        "has no 'Missing'",
    ),
}
"""Package to (method name, source of its plugin module, part of its line)."""


@pytest.fixture
def broken(site):
    for package, (name, source, _) in SIX.items():
        site.method(package, name, source=source, version="0.1")
    return site


def listing(site, **environment):
    done = site.run("-m", "daptkit", "plugins", "list", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {(row["package"], row["name"]): row for row in json.loads(done.stdout)}


def test_six_broken_plugins_spoil_nothing_but_themselves(site):
    before = listing(site)
    site.method("good-pkg", "good")
    for package, (name, source, _) in SIX.items():
        site.method(package, name, source=source, version="0.1")
    after = listing(site)
    for package, (name, _, reason) in SIX.items():
        row = after.pop((package, name))
        assert row["status"] == ("duplicate" if name == "dann" else "error")
        assert reason in row["reason"]
        assert row["version"] == "0.1"
        assert "\n" not in row["reason"]
    assert after.pop(("good-pkg", "good"))["status"] == "ok"
    assert after == before


def test_what_methods_declare_is_listed(site):
    declared = HOOK + SPEC.format(", risks=frozenset({'own_predictions', 'adversarial'})")
    site.method("pkg-risky", "risky", source=declared)
    site.method("pkg-calm", "calm")
    found = listing(site)
    assert found["pkg-risky", "risky"]["risks"] == ["adversarial", "own_predictions"]
    assert found["pkg-calm", "calm"]["risks"] == []


def test_the_table_has_one_line_for_each_plugin(broken):
    broken.method("good-pkg", "good")
    done = broken.run("-m", "daptkit", "plugins", "list")
    lines = done.stdout.splitlines()
    for package, (_, _, reason) in SIX.items():
        (line,) = [text for text in lines if f"{package} 0.1" in text]
        assert reason in line
    (good,) = [text for text in lines if "good-pkg 1.0" in text]
    assert good.split()[4:] == ["ok", "Aligns", "good."]
    assert done.stderr == ""


def test_a_run_of_a_good_plugin_does_not_see_the_broken_ones(broken):
    broken.method("good-pkg", "good")
    done = broken.run("-m", "daptkit", "adapt", "-m", "good", "--help")
    assert done.returncode == 0, done.stderr
    assert "--good.weight" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("package", [p for p in SIX if p != "broken-duplicate"])
def test_a_run_that_names_a_broken_plugin_ends_with_its_line(broken, package):
    name, _, reason = SIX[package]
    done = broken.run("-m", "daptkit", "adapt", "-m", name, "--help")
    assert done.returncode == 4
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{package} 0.1" in line
    assert reason in line


def test_plugins_that_hang_or_end_the_process_are_blamed_and_the_rest_is_seen(site, monkeypatch):
    site.method("a-hangs", "hangs", source="import time\nwhile True: time.sleep(1)")
    site.method("b-exits", "exits", source="import os; os._exit(7)")
    site.method("c-crashes", "crashes", source="import os, signal; os.kill(os.getpid(), 11)")
    site.method("d-reads", "reads", source="input('name? ')")
    site.method("e-good", "good")
    rows = {p.name: p for p in list_plugins(timeout=1.0)}
    assert "took more than 1 s" in rows["hangs"].reason
    assert "exit status 7" in rows["exits"].reason
    assert "SIGSEGV" in rows["crashes"].reason
    assert "EOFError" in rows["reads"].reason
    assert (rows["good"].status, rows["good"].reason) == ("ok", "")


def test_prints_of_plugins_do_not_reach_the_answer(site):
    noisy = "import os\nprint('noise')\nos.write(1, b'noise')\n"
    module = site.method("noisy", "noisy")
    path = site.folder / f"{module}.py"
    path.write_text(noisy + path.read_text())
    assert {p.name: p.status for p in list_plugins()}["noisy"] == "ok"


def test_what_a_plugin_leaves_running_does_not_hurt_the_next(site):
    site.method(
        "a-bomb",
        "bomb",
        source="import os, threading\nthreading.Timer(0.05, os._exit, [1]).start()\n"
        + HOOK
        + SPEC.format(""),
    )
    site.method(
        "b-fork",
        "fork",
        source="import os, time\nif os.fork() == 0:\n    time.sleep(3)\n"
        "    os._exit(0)\n" + HOOK + SPEC.format(""),
    )
    rows = {p.name: p.status for p in list_plugins(timeout=5.0)}
    assert rows["bomb"] == "ok"
    assert rows["fork"] == "ok"


def test_listing_imports_no_plugin_here_and_shows_switched_off_ones(site, monkeypatch):
    module = site.method("alpha-pkg", "alpha")
    site.method("beta-pkg", "beta", source="raise RuntimeError")
    monkeypatch.setenv("DAPTKIT_DISABLE", "beta")
    rows = {p.name: p for p in list_plugins()}
    assert module not in sys.modules
    assert rows["alpha"].summary == "Aligns alpha."
    assert rows["alpha"].reference == "arXiv:0000.00000"
    assert (rows["beta"].status, rows["beta"].reason) == (
        "disabled",
        "switched off by DAPTKIT_DISABLE",
    )
