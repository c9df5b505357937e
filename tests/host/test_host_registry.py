"""Every way in which a plugin module can be wrong gives one line that says so."""

from __future__ import annotations

import threading
import time

import pytest

from daptkit.host.entry import Unit
from daptkit.host.isolation import time_limit
from daptkit.host.registry import inspect_unit
from daptkit.plugin import API_VERSION, MethodSpec

HEAD = """
from dataclasses import dataclass, field
from daptkit.plugin import MethodSpec, hookimpl, option
"""

HOOK = """
@hookimpl
def daptkit_methods():
    return {}
"""


def inspect(site, source, names=("alpha",), timeout=5.0, kind="method"):
    site.install("pkg", {"pkg_plugin": source, "pkg_method": "class Aligner: ..."}, {})
    entries = tuple((kind, name) for name in names)
    unit = Unit(package="pkg", version="1", module="pkg_plugin", entries=entries)
    return inspect_unit(unit, timeout)


def spec(**fields):
    fields = {"name": "'alpha'", "summary": "'x'", "factory": "'pkg_method:Aligner'", **fields}
    return "MethodSpec(" + ", ".join(f"{k}={v}" for k, v in fields.items()) + ")"


def test_a_good_module_gives_its_specification(site):
    (finding,) = inspect(site, HEAD + HOOK.format(spec()))
    assert finding.ok
    assert finding.reason == ""
    assert isinstance(finding.spec, MethodSpec)


@pytest.mark.parametrize(
    "returned", ["[{}]", "({},)", "(s for s in [{}])"], ids=["list", "tuple", "generator"]
)
def test_hooks_may_return_iterables(site, returned):
    (finding,) = inspect(site, HEAD + HOOK.format(returned.format(spec())))
    assert finding.ok


BROKEN_MODULES = {
    "raises": ("raise OSError('no such\\n library')", "raised OSError: no such library"),
    "exits": ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    "syntax": ("def broken(:", "raised SyntaxError"),
    "misspelt": (
        "from daptkit.plugin import hookimpl\n@hookimpl\ndef daptkit_method(): ...",
        "no hook 'daptkit_method'. Did you mean 'daptkit_methods'?",
    ),
    "misspelt prefix": (
        "from daptkit.plugin import hookimpl\n@hookimpl\ndef dapkit_methods(): ...",
        "no hook 'dapkit_methods'. Did you mean 'daptkit_methods'?",
    ),
    "misspelt, no marker": ("def daptkit_metods(): ...", "Did you mean 'daptkit_methods'?"),
    "no marker": ("def daptkit_methods(): ...", "lacks the @daptkit.plugin.hookimpl marker"),
    "no hook": ("", "does not implement the hook 'daptkit_methods'"),
    "wrong arguments": (
        "from daptkit.plugin import hookimpl\n@hookimpl\ndef daptkit_methods(config): ...",
        "config",
    ),
    "hook raises": (HEAD + HOOK.format("1 / 0"), "raised ZeroDivisionError"),
    "not a spec": (HEAD + HOOK.format("42"), "returned int, not a MethodSpec"),
    "text": (HEAD + HOOK.format("'alpha'"), "returned str, not a MethodSpec"),
    "nothing": (HEAD + HOOK.format("None"), "returned NoneType, not a MethodSpec"),
    "one of two is no spec": (HEAD + HOOK.format(f"[{spec()}, dict()]"), "returned dict"),
    "unknown field": (HEAD + HOOK.format(spec(weight="1")), "raised TypeError"),
    "other name": (HEAD + HOOK.format(spec(name="'alfa'")), "offers 'alfa', but nothing named"),
    "twice": (HEAD + HOOK.format(f"[{spec()}, {spec()}]"), "the name 'alpha' 2 times"),
    "too new": (HEAD + HOOK.format(spec(api=API_VERSION + 1)), "upgrade daptkit"),
    "too old": (HEAD + HOOK.format(spec(api=API_VERSION - 1)), "upgrade the plugin"),
    "no version": (HEAD + HOOK.format(spec(api="'1'")), "api must be a whole number"),
    "summary": (HEAD + HOOK.format(spec(summary="''")), "summary must be one line"),
    "role": (
        HEAD + HOOK.format(spec(roles="frozenset({'class_weight'})")),
        "roles has the unknown value 'class_weight'",
    ),
    "role as text": (HEAD + HOOK.format(spec(roles="'norm'")), "roles must be a frozenset"),
    "need": (HEAD + HOOK.format(spec(needs="frozenset({'sorce'})")), "Did you mean 'source'?"),
    "shift": (HEAD + HOOK.format(spec(addresses="frozenset({'prior'})")), "addresses has"),
    "risk": (
        HEAD + HOOK.format(spec(risks="frozenset({'adverserial'})")),
        "Did you mean 'adversarial'?",
    ),
    "raises confidence": (
        HEAD + HOOK.format(spec(raises_confidence="'no'")),
        "raises_confidence is true or false, not 'no'",
    ),
    "look": (HEAD + HOOK.format(spec(corrects="frozenset({'color'})")), "Did you mean 'colour'"),
    "trains": (HEAD + HOOK.format(spec(trains="'head'")), "trains must be one of all"),
    "factory form": (HEAD + HOOK.format(spec(factory="'pkg_method'")), "the form 'module:name'"),
    "factory module": (HEAD + HOOK.format(spec(factory="'pkg_no:A'")), "no module 'pkg_no'"),
    "factory parent": (HEAD + HOOK.format(spec(factory="'pkg_no.b:A'")), "no module 'pkg_no.b'"),
    "factory name": (
        HEAD + HOOK.format(spec(factory="'pkg_method:Alignr'")),
        "module 'pkg_method' has no 'Alignr'. Did you mean 'Aligner'?",
    ),
    "options": (HEAD + HOOK.format(spec(options="dict")), "options must be a dataclass"),
    "options not frozen": (
        HEAD
        + "@dataclass\nclass O:\n    w: float = option(1.0, 'W.')\n"
        + HOOK.format(spec(options="O")),
        "options O must be frozen",
    ),
    "plain field": (
        HEAD
        + "@dataclass(frozen=True)\nclass O:\n    w: float = 1.0\n"
        + HOOK.format(spec(options="O")),
        "field 'w' of options O must be made by",
    ),
    "default out of bounds": (
        HEAD
        + "@dataclass(frozen=True)\nclass O:\n    w: float = option(9.0, 'W.', high=1.0)\n"
        + HOOK.format(spec(options="O")),
        "a default is not allowed",
    ),
    "unknown type": (
        HEAD
        + "@dataclass(frozen=True)\nclass O:\n    w: 'Flot' = option(1.0, 'W.')\n"
        + HOOK.format(spec(options="O")),
        "raised NameError",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MODULES)
def test_a_broken_module_gives_one_line(site, case):
    source, reason = BROKEN_MODULES[case]
    (finding,) = inspect(site, source)
    assert not finding.ok
    assert finding.spec is None
    assert reason in finding.reason
    assert "\n" not in finding.reason


def test_a_bad_specification_leaves_its_sibling_alone(site):
    source = HEAD + HOOK.format(f"[{spec()}, {spec(name=repr('beta'), api=9)}]")
    alpha, beta = inspect(site, source, names=("alpha", "beta"))
    assert alpha.ok
    assert "API version 9" in beta.reason


def test_a_specification_without_entry_point_is_named(site):
    source = HEAD + HOOK.format(f"[{spec()}, {spec(name=repr('beta'))}]")
    alpha, stray = inspect(site, source)
    assert alpha.ok
    assert stray.name == "beta"
    assert "add beta = \"pkg_plugin\" to the group 'daptkit'" in stray.reason


@pytest.mark.parametrize("name", ["none", "a+b", "a.b", "9lives"])
def test_names_that_cannot_stand_on_the_command_line_are_refused(site, name):
    source = HEAD + HOOK.format(spec(name=repr(name)))
    (finding,) = inspect(site, source, names=(name,))
    assert "is not allowed: a letter first, then letters, digits, '-' and '_'" in finding.reason


def test_an_entry_point_must_name_a_module():
    unit = Unit(package="p", version="1", module="m:attribute", entries=(("method", "alpha"),))
    (finding,) = inspect_unit(unit, None)
    assert "must name a module" in finding.reason


def test_a_slow_import_is_stopped_even_if_it_catches_every_exception(site):
    source = "import time\ntry:\n    time.sleep(30)\nexcept Exception:\n    pass\n"
    started = time.monotonic()
    (finding,) = inspect(site, source, timeout=0.2)
    assert time.monotonic() - started < 10
    assert "took more than 0.2 s" in finding.reason


def test_the_time_limit_gives_an_earlier_alarm_back():
    import signal

    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    outer, _ = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with time_limit(5.0):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        assert rung.wait(5.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_import_without_an_alarm(site):
    findings = []
    worker = threading.Thread(
        target=lambda: findings.extend(inspect(site, HEAD + HOOK.format(spec())))
    )
    worker.start()
    worker.join()
    assert [f.ok for f in findings] == [True]


def test_prints_of_a_plugin_stay_off_stdout(site, capsys):
    inspect(site, "print('hello from import')\n" + HEAD + HOOK.format(spec()))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello from import" in captured.err


def test_factory_names_may_be_bound_in_any_way_the_source_shows(site):
    (site.folder / "many.py").write_text(
        "try:\n    from json import loads as a\nexcept ImportError:\n    b = None\n"
        "if True:\n    def c(): ...\nd: int = 1\n(e, f) = 1, 2\n"
    )
    for i, name in enumerate("abcdef"):
        source = HEAD + HOOK.format(spec(factory=f"'many:{name}'"))
        (site.folder / f"many_plugin{i}.py").write_text(source)
        unit = Unit(
            package="p", version="1", module=f"many_plugin{i}", entries=(("method", "alpha"),)
        )
        (finding,) = inspect_unit(unit, None)
        assert finding.ok, finding.reason


READER = (
    "from daptkit.plugin import ReaderSpec, hookimpl\n@hookimpl\ndef daptkit_readers():\n"
    "    return ReaderSpec(name='alpha', extensions={}, factory='pkg_method:Aligner')\n"
)


@pytest.mark.parametrize("extensions", ["('raw',)", "('.RAW',)", "()", "'.raw'"])
def test_reader_extensions_are_checked(site, extensions):
    (finding,) = inspect(site, READER.format(extensions), kind="reader")
    assert "extensions must be lower-case text" in finding.reason


def test_a_good_reader_passes(site):
    (finding,) = inspect(site, READER.format("('.raw',)"), kind="reader")
    assert finding.ok


def test_a_sibling_that_is_switched_off_is_no_stray(site):
    source = HEAD + HOOK.format(f"[{spec()}, {spec(name=repr('beta'))}]")
    site.install("pkg", {"pkg_plugin": source, "pkg_method": "class Aligner: ..."}, {})
    unit = Unit(
        package="pkg",
        version="1",
        module="pkg_plugin",
        entries=(("method", "alpha"),),
        unused=(("method", "beta"),),
    )
    assert [(f.name, f.ok) for f in inspect_unit(unit, None)] == [("alpha", True)]
