"""Names, duplicates and switches are settled from metadata alone."""

from __future__ import annotations

import sys

import pytest

from daptkit.host.discovery import discover, duplicate_reason


def test_entries_carry_package_and_version_and_nothing_is_imported(site):
    module = site.method("alpha-pkg", "alpha", source="raise RuntimeError('imported')", version="3")
    entry = discover().find("method", "alpha")
    assert (entry.module, entry.origin) == (module, "alpha-pkg 3")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("packages", "winner"),
    [
        (("aaa", "daptkit-zzz"), "daptkit-zzz"),
        (("zzz", "aaa"), "aaa"),
        (("daptkit-b", "daptkit-a"), "daptkit-a"),
        (("aaa", "Daptkit_Zzz"), "Daptkit_Zzz"),
    ],
)
def test_winner_of_a_name_does_not_depend_on_order(site, packages, winner):
    for package in packages:
        site.method(package, "alpha")
    found = discover()
    assert found.find("method", "alpha").package == winner
    ((loser, won),) = [d for d in found.duplicates if d[0].name == "alpha"]
    assert {loser.package, won.package} == set(packages)
    assert winner in duplicate_reason(loser, won)


@pytest.mark.parametrize("switch", ["alpha", "Alpha.Pkg", "x, alpha-pkg ,y"])
def test_disable_by_method_or_package(site, monkeypatch, switch):
    site.method("alpha-pkg", "alpha")
    monkeypatch.setenv("DAPTKIT_DISABLE", switch)
    found = discover()
    assert found.find("method", "alpha") is None
    assert [e.name for e in found.disabled] == ["alpha"]


def test_disabling_the_winner_gives_the_name_to_the_other(site, monkeypatch):
    site.method("daptkit-a", "alpha")
    site.method("other", "alpha")
    monkeypatch.setenv("DAPTKIT_DISABLE", "daptkit-a")
    found = discover()
    assert found.find("method", "alpha").package == "other"
    assert not [d for d in found.duplicates if d[0].name == "alpha"]


def test_entries_of_one_module_form_one_unit(site):
    site.install(
        "both", {}, {"daptkit": {"a1": "m", "a2": "m"}, "daptkit.events": {"a3": "m", "a4": "n"}}
    )
    mine = [u for u in discover().units() if u.package == "both"]
    assert sorted((u.module, tuple(sorted(u.entries))) for u in mine) == [
        ("m", (("event", "a3"), ("method", "a1"), ("method", "a2"))),
        ("n", (("event", "a4"),)),
    ]


def test_a_unit_knows_its_unused_entries_and_one_kind_can_be_asked_for(site, monkeypatch):
    site.install("both", {}, {"daptkit": {"a1": "m", "a2": "m"}, "daptkit.events": {"a3": "n"}})
    monkeypatch.setenv("DAPTKIT_DISABLE", "a2")
    (unit,) = [u for u in discover().units("method") if u.package == "both"]
    assert (unit.module, unit.entries, unit.unused) == (
        "m",
        (("method", "a1"),),
        (("method", "a2"),),
    )
    assert [u.module for u in discover().units("event") if u.package == "both"] == ["n"]
