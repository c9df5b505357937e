"""What a run names is loaded, and nothing else; what is wrong ends in one clear error."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from daptkit.errors import PluginError, UsageError
from daptkit.host import load_methods, load_models, load_readers, method_options, parse_method
from daptkit.host.isolation import guarded

ROLE = """
from daptkit.plugin import MethodSpec, hookimpl

@hookimpl
def daptkit_methods():
    return MethodSpec(name="NAME", summary="Owns.", factory="MODULE_method:Aligner",
                      roles=frozenset({"target_prior"}))
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [("none", []), ("dann", ["dann"]), ("dann+bbse", ["dann", "bbse"]), (" a + b ", ["a", "b"])],
)
def test_parse_method(text, names):
    assert parse_method(text) == names


@pytest.mark.parametrize("text", ["", "+", "dann+", "none+dann", "dann+bbse+dann"])
def test_parse_method_refuses(text):
    with pytest.raises(UsageError, match="-m"):
        parse_method(text)


def test_only_the_named_plugin_is_imported(site):
    named = site.method("alpha-pkg", "alpha", version="2.5")
    other = site.method("beta-pkg", "beta", source="raise RuntimeError('imported')")
    (method,) = load_methods(["alpha"])
    assert (method.spec.name, method.package, method.version) == ("alpha", "alpha-pkg", "2.5")
    assert named in sys.modules
    assert other not in sys.modules
    assert load_methods([]) == []


def test_unknown_methods_get_a_suggestion(site):
    site.method("alpha-pkg", "alphabet")
    with pytest.raises(UsageError, match=r"unknown method 'alfabet'.*Did you mean 'alphabet'"):
        load_methods(["alfabet"])


def test_a_shipped_method_that_is_missing_names_its_package(site, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(site.folder)])
    with pytest.raises(UsageError, match="pip install daptkit-mmd"):
        load_methods(["jmmd"])


def test_a_disabled_method_says_so(site, monkeypatch):
    site.method("alpha-pkg", "alpha")
    monkeypatch.setenv("DAPTKIT_DISABLE", "alpha-pkg")
    with pytest.raises(UsageError, match=r"alpha-pkg 1\.0 is switched off by DAPTKIT_DISABLE"):
        load_methods(["alpha"])


def test_a_broken_method_names_package_and_version(site):
    site.method("alpha-pkg", "alpha", source="import no_such_thing", version="0.9")
    with pytest.raises(PluginError, match=r"'alpha' of package alpha-pkg 0\.9 .*no_such_thing"):
        load_methods(["alpha"])


def test_a_hanging_method_is_stopped(site, monkeypatch):
    site.method("alpha-pkg", "alpha", source="import time; time.sleep(30)")
    monkeypatch.setenv("DAPTKIT_PLUGIN_TIMEOUT", "0.2")
    with pytest.raises(PluginError, match=r"took more than 0\.2 s"):
        load_methods(["alpha"])


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_the_time_limit_must_be_a_positive_number(site, monkeypatch, text):
    site.method("alpha-pkg", "alpha")
    monkeypatch.setenv("DAPTKIT_PLUGIN_TIMEOUT", text)
    with pytest.raises(UsageError, match="DAPTKIT_PLUGIN_TIMEOUT"):
        load_methods(["alpha"])


def test_two_owners_of_a_role_are_both_named(site):
    site.method("alpha-pkg", "alpha", source=ROLE)
    site.method("beta-pkg", "beta", source=ROLE, version="7")
    with pytest.raises(PluginError) as caught:
        load_methods(["alpha", "beta"])
    for part in ("alpha-pkg 1.0", "beta-pkg 7", "'target_prior'"):
        assert part in str(caught.value)


def test_a_duplicated_name_warns_with_the_cure(site, lines):
    kept, log = lines
    site.method("daptkit-alpha", "alpha")
    site.method("evil", "alpha", source="raise RuntimeError")
    (method,) = load_methods(["alpha"], log=log)
    assert method.package == "daptkit-alpha"
    (line,) = kept
    for part in ("daptkit-alpha 1.0", "evil 1.0", "DAPTKIT_DISABLE=daptkit-alpha"):
        assert part in line


def test_method_options_keeps_the_order_of_the_run(site):
    site.method("beta-pkg", "beta")
    site.method("alpha-pkg", "alpha", source=ROLE)
    found = method_options("beta+alpha")
    assert list(found) == ["beta", "alpha"]
    assert found["beta"]().weight == 1.0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise OSError('no library')\nclass Aligner: ...", "raised OSError: no library"),
        ("class Aligner: ...", "no subclass of"),
        ("def __getattr__(name): raise AttributeError(name)", "has no 'Aligner'"),
    ],
)
def test_a_broken_factory_names_method_package_and_version(site, source, reason):
    module = site.method("alpha-pkg", "alpha", version="0.4")
    (site.folder / f"{module}_method.py").write_text(source)
    (method,) = load_methods(["alpha"])
    with pytest.raises(PluginError) as caught:
        method.load_factory()
    assert "method 'alpha' of package alpha-pkg 0.4" in str(caught.value)
    assert reason in str(caught.value)


def test_a_constructor_that_raises_is_the_plugins_fault(site):
    module = site.method("alpha-pkg", "alpha")
    (site.folder / f"{module}_method.py").write_text(
        "from daptkit.errors import UsageError\nfrom daptkit.method import Method\n"
        "class Aligner(Method):\n"
        "    def __init__(self, options, task):\n"
        "        super().__init__(options, task)\n"
        "        if task.n_source == 1: raise UsageError('too few images')\n"
        "        if task.n_source == 2: raise KeyError('oops')\n"
    )
    (method,) = load_methods(["alpha"])
    options = method.spec.options()
    assert method.create(options, SimpleNamespace(n_source=3)).options is options
    with pytest.raises(UsageError, match="too few images"):
        method.create(options, SimpleNamespace(n_source=1))
    with pytest.raises(PluginError, match=r"alpha-pkg 1\.0 cannot start: KeyError"):
        method.create(options, SimpleNamespace(n_source=2))


MODEL = """
from daptkit.plugin import ModelSpec, ReaderSpec, hookimpl

def make(in_chans): return in_chans

@hookimpl
def daptkit_models():
    return ModelSpec(name="alpha_net", factory="PLUGIN:make")

@hookimpl
def daptkit_readers():
    return [ReaderSpec(name="raw", extensions=(".raw", ".rw2"), factory="PLUGIN:make"),
            ReaderSpec(name="dng", extensions=(".dng",), factory="PLUGIN:make")]
"""


def install_model(site):
    site.install(
        "alpha-pkg",
        {"alpha_models": MODEL.replace("PLUGIN", "alpha_models"), "bad_models": "raise OSError"},
        {
            "daptkit.models": {"alpha_net": "alpha_models", "bad_net": "bad_models"},
            "daptkit.readers": {"raw": "alpha_models", "dng": "alpha_models", "bad": "bad_models"},
        },
    )


def test_models_are_found_by_name(site, lines):
    kept, log = lines
    install_model(site)
    (model,) = load_models(["alpha_net", "resnet18"])
    assert model.load_factory()(3) == 3
    assert load_models(["resnet18"]) == []
    with pytest.raises(PluginError, match=r"model 'bad_net' of package alpha-pkg 1\.0"):
        load_models(["bad_net"])
    assert "alpha_net" in [m.spec.name for m in load_models(log=log)]
    assert any("'bad_net'" in line and "OSError" in line for line in kept)


def test_readers_are_found_by_extension_past_a_broken_one(site, lines):
    kept, log = lines
    install_model(site)
    assert [r.spec.name for r in load_readers({".rw2"}, log=log)] == ["raw"]
    assert {"raw", "dng"} <= {r.spec.name for r in load_readers(log=log)}
    assert load_readers({".none"}, log=log) == []
    assert any("reader 'bad' of package alpha-pkg 1.0" in line for line in kept)


def test_plugins_that_load_in_two_threads_leave_stdout_alone(capsys):
    first_inside, second_tries = threading.Event(), threading.Event()

    def first():
        with guarded("loading", timeout=None):
            first_inside.set()
            second_tries.wait(5)
            time.sleep(0.1)  # so that the other is inside as well, if it can be

    def second():
        first_inside.wait(5)
        second_tries.set()
        with guarded("loading", timeout=None):
            print("noise of a plugin")
            time.sleep(0.1)

    before = sys.stdout
    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is before
    assert capsys.readouterr() == ("", "noise of a plugin\n")
