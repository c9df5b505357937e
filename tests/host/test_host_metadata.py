"""The quick reader of entry points gives what importlib.metadata gives."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile

from daptkit.host import metadata
from daptkit.host.metadata import Point, entry_points


def standard(groups):
    return set(metadata._from_standard_library(groups))


def test_it_agrees_with_the_standard_library_on_everything_installed():
    groups = list(importlib.metadata.entry_points().groups)
    quick = set(metadata._from_folders(groups))
    assert {"console_scripts", "daptkit"} <= {p.group for p in quick}
    assert quick == standard(groups)


def test_it_agrees_on_odd_files(site, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(site.folder), "", str(site.folder / "absent")])
    site.install("Odd.Name-x", {}, {})
    info = next(site.folder.glob("*.dist-info"))
    (info / "entry_points.txt").write_text(
        "# a comment\n\n[daptkit]\n  a=m.n\nb = o : p [extra]\n# c = d\n[other]\ne = f\n"
    )
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nNAME: Odd.Name-x\nVersion:  1\n\nName: z"
    )
    egg = site.folder / "legacy.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Name: legacy\nVersion: 0.1\n")
    (egg / "entry_points.txt").write_text("[daptkit]\nlegacy = l\n")
    (site.folder / "plain-2.0.egg-info").write_text("Name: plain\nVersion: 2.0\n")
    quick = set(metadata._from_folders(["daptkit"]))
    assert {(p.name, p.package, p.version) for p in quick} == {
        ("a", "Odd.Name-x", "1"),
        ("b", "Odd.Name-x", "1"),
        ("legacy", "legacy", "0.1"),
    }
    assert quick == standard(["daptkit"])


def test_the_first_distribution_of_a_name_counts(site, monkeypatch, tmp_path):
    second = tmp_path / "second"
    monkeypatch.setattr(sys, "path", [str(site.folder), str(second)])
    site.method("same-name", "alpha", version="1.0")
    site.folder.rename(second)
    site.folder.mkdir()
    site.method("Same_Name", "beta", version="2.0")
    (point,) = entry_points(["daptkit"])
    assert (point.name, point.version) == ("beta", "2.0")
    assert {point} == standard(["daptkit"])


def test_an_archive_on_the_path_is_left_to_the_standard_library(site, monkeypatch, tmp_path):
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("packed-3.0.dist-info/METADATA", "Name: packed\nVersion: 3.0\n")
        file.writestr("packed-3.0.dist-info/entry_points.txt", "[daptkit]\nzipped = z\n")
    monkeypatch.setattr(sys, "path", [str(site.folder), str(archive)])
    site.method("alpha-pkg", "alpha")
    assert set(entry_points(["daptkit"])) == {
        Point(group="daptkit", name="zipped", value="z", package="packed", version="3.0"),
        Point(
            group="daptkit",
            name="alpha",
            value="plugin_alpha_pkg",
            package="alpha-pkg",
            version="1.0",
        ),
    }
