"""What README.md and the plugins' READMEs claim: commands, examples, tables and links."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import daptkit.errors
from daptkit.cli import adapt, compare, data_check_text
from daptkit.cli.main import INTERRUPTED, run
from daptkit.diagnoseconfig import SHARED, DiagnoseOptions
from daptkit.host import load_methods, load_readers
from daptkit.method import DomainBatch, FitContext, Method, StepContext, TaskInfo
from daptkit.plugin import MethodSpec
from daptkit.recipes import demo
from daptkit.testing import assert_global_batch, check_names, make_batch, make_step, make_task
from make_sites import make_sites

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("plugins/*/README.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMED_BLOCK = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def text(page: Path = README) -> str:
    return page.read_text(encoding="utf-8")


def section(title: str, page: Path = README) -> str:
    """Return what stands below a heading, down to the next of any level."""
    pattern = rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ )"
    found = re.search(pattern, text(page), re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every ``daptkit`` command in the code blocks of a page."""
    blocks = [block for language, block in BLOCK.findall(text(page)) if language == "bash"]
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words[:1] == ["daptkit"]]


def install(folder: Path) -> None:
    """Write the README's plugin as an installer would: modules, METADATA, entry_points.txt."""
    files = dict(NAMED_BLOCK.findall(text()))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for name, content in files.items():
        file = folder / Path(name).relative_to("src")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        (file.parent / "__init__.py").touch()
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's plugin, on the path of this process and of those it starts."""
    folder = tmp_path / "site"
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "daptkit_means"]:
        del sys.modules[name]


def daptkit_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daptkit", *arguments],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_plugin_of_the_readme_works(example: Path, tmp_path: Path, two_sites: Path) -> None:
    listed = daptkit_command("plugins", "list", "--json")
    (entry,) = [p for p in json.loads(listed.stdout) if p["name"] == "means"]
    assert (entry["status"], entry["package"]) == ("ok", "daptkit-means")
    adapted = daptkit_command(
        *("adapt", "--source", str(two_sites / "source"), "--target", str(two_sites / "target")),
        *("-m", "means+bbse", "--means.weight", "0.5", "--model", "daptkit_lenet"),
        *("--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "run"), "--json"),
    )
    assert adapted.returncode == 0, adapted.stderr
    assert json.loads(adapted.stdout)["plugins"]["means"]["package"] == "daptkit-means"
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    values = json.loads(last)["values"]
    assert 0 < values["means/means"] < 0.5 * values["means/distance"]


def test_the_plugin_of_the_readme_shows_its_options(
    example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["adapt", "-m", "means", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--means.weight X Weight of the distance of means. [default: 1.0" in shown


def test_checks_of_methods_have_a_row() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section("Conformance"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(check_names())


def test_the_plugin_of_the_readme_is_right_over_several_processes(example: Path) -> None:
    (loaded,) = load_methods(["means"])
    method = loaded.create(loaded.spec.options(), make_task())
    assert_global_batch(method)


def test_the_plugin_of_the_readme_weights_the_source(example: Path) -> None:
    (loaded,) = load_methods(["means"])
    method = loaded.create(loaded.spec.options(weight=2.0), make_task())
    weights = torch.tensor([0.0, 3.0, 1.0, 0.5])
    source, target = make_batch(4, 1, weights=weights), make_batch(3, 2, shift=1.0)
    found = method.losses(source, target, make_step(progress=1.0))["means"].item()
    rows_s, rows_t = source.features.tolist(), target.features.tolist()
    wanted = 0.0
    for d in range(6):
        m_s = sum(w * x[d] for w, x in zip(weights.tolist(), rows_s, strict=True)) / 4.5
        m_t = sum(x[d] for x in rows_t) / 3
        wanted += 2.0 * (m_s - m_t) ** 2 / 6
    assert found == pytest.approx(wanted * math.tanh(5.0), rel=1e-5)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that reach the pipelines, which are not run."""
    fake: Any = ModuleType("daptkit.recipes")
    calls: list[Any] = []

    def note(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options))
        return SimpleNamespace(summary="", data={}, out=Path("run"), leads=True, page=None)

    fake.compare = lambda *arguments, **options: (
        calls.append((arguments, options))
        or (
            SimpleNamespace(
                summary="", data={"choice": {"recommended": "dann"}}, out=Path("cmp"), error=None
            )
        )
    )
    fake.diagnose = note
    fake.adapt = fake.predict = fake.build_report = fake.demo = fake.simulate = note
    fake.check_data = lambda *arguments, **options: calls.append((arguments, options)) or {"ok": 1}
    monkeypatch.setattr(data_check_text, "print_found", lambda found: None)
    fake.evaluate = lambda *arguments, **options: calls.append((arguments, options)) or {}
    monkeypatch.setitem(sys.modules, "daptkit.recipes", fake)
    return calls


@each_page
def test_commands_are_accepted(
    page: Path, example: Path, recipes: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(page)
    assert found or page.name == "CONTRIBUTING.md"
    for arguments in found:
        assert run(arguments) == 0, capsys.readouterr().err
    pipelines = ("adapt", "diagnose", "compare", "predict", "evaluate", "report", "demo")
    of_data = (["data", "check"], ["data", "simulate"])
    called = [a for a in found if a[0] in pipelines or a[:2] in of_data]
    called = [a for a in called if "--help" not in a]
    assert len(recipes) == len(called)


def test_the_one_line_uses_what_is_there() -> None:
    (line,) = [line for line in text().splitlines() if "pip install -r" in line]
    parts = [shlex.split(part) for part in line.split("&&")]
    assert [part[0] for part in parts] == ["python3", ".", "pip", "daptkit"]
    assert (ROOT / parts[2][-1]).is_file()
    assert parts[3] == ["daptkit", "demo"]
    out = inspect.signature(demo).parameters["out"].default
    assert f"`{out}/run/report.html`" in text()
    assert f"{out}/" in (ROOT / ".gitignore").read_text().split()


def test_the_pages_of_the_examples_are_linked() -> None:
    pages = [p.parent.name for p in ROOT.glob("examples/*/README.md")]
    assert len(pages) == 3
    index = text(ROOT / "examples" / "README.md")
    assert all(f"({name}/README.md)" in index for name in pages)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_sites(tmp_path, n_source=40, n_target=40, size=32)
    for site, name in (("source", "site_a"), ("target", "site_b")):
        (made / site).rename(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daptkit.train.loop.MIN_EPOCHS", 1)
    monkeypatch.setattr("daptkit.train.loop.MIN_STEPS", 1)
    (code,) = [block for name, block in BLOCK.findall(section("Python")) if name == "python"]
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["result"].data["methods"].keys() == {"dann", "bbse"}
    assert 0 <= found["scores"]["balanced_accuracy"]["value"] <= 1
    assert (tmp_path / "new.csv").is_file()
    assert found["page"] == Path("run/report.html") and found["page"].is_file()


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", text(there), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings]
        assert not anchor or anchor in slugs, target


def described(contract: str, lead: str) -> set[str]:
    """Return the names in code marks of one paragraph or table of the contract."""
    start = contract.index(lead)
    end = re.compile(r"\n\n(?!\|)").search(contract, start)
    assert end is not None
    names = re.findall(r"`([a-z_]\w*)", contract[start : end.start()])
    return set(names)


def members(cls: type) -> set[str]:
    fields = set(getattr(cls, "__annotations__", {}))
    return {n for n in {*vars(cls), *fields} if not n.startswith("_")}


@pytest.mark.parametrize(
    ("lead", "names"),
    [
        ("**`MethodSpec`**", {f.name for f in dataclasses.fields(MethodSpec)}),
        ("**`Method`**", members(Method) | members(TaskInfo)),
        ("**`DomainBatch`**", members(DomainBatch)),
        ("**`StepContext`**", members(StepContext)),
        ("**`FitContext`**", members(FitContext)),
    ],
)
def test_the_contract_names_every_member(lead: str, names: set[str]) -> None:
    missing = names - described(section("The contract, version 1"), lead)
    assert not missing


def test_members_that_the_contract_names_exist() -> None:
    table = section("The contract, version 1").partition("**`Method`**")[2].partition("\n\nA ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert named >= {"losses", "class_weights"}
    assert all(hasattr(Method, name) for name in named)


def test_exit_codes() -> None:
    codes = {
        error.exit_code
        for error in vars(daptkit.errors).values()
        if isinstance(error, type) and issubclass(error, daptkit.errors.DaptkitError)
    }
    (line,) = re.findall(r"Exit codes: (.*?)\. ", text().replace("\n", " "))
    assert {int(code) for code in re.findall(r"\d+", line)} == {0, INTERRUPTED, *codes}


def test_options_of_compare() -> None:
    rows = re.findall(
        r"^\| `--?([\w-]+)[^|]*\| `?(\w*)`? ?\|", section("Compare methods"), re.MULTILINE
    )
    found = {str(p.name).replace("_", "-"): p for p in compare.command.params}
    own = found.keys() - {str(p.name).replace("_", "-") for p in adapt.command.params}
    assert {name for name, _ in rows} == {"m", "report", "resume", *own}
    shown = {name: {"off": "False"}.get(default, default) for name, default in rows if default}
    assert shown.keys() == {"seeds", "report", "resume"}
    assert {name: str(found[name].default) for name in shown} == shown


def test_options_of_diagnose() -> None:
    told = section("Which shift is it?")
    rows = re.findall(r"^\| `--([\w-]+)[^|]*\| ([^|]*)\|", told, re.MULTILINE)
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(DiagnoseOptions)}
    assert {name for name, _ in rows} == {*fields, "json"}
    for name, meaning in rows:
        shown = re.search(r"\((\d[\d.]*)\)", meaning)
        assert shown is None or float(shown[1]) == fields[name].default
    for name in SHARED:
        assert f"`--{name.replace('_', '-')}`" in told


def test_environment_variables() -> None:
    code = [*ROOT.glob("daptkit/**/*.py"), *ROOT.glob("tests/conftest.py")]
    used = {name for file in code for name in re.findall(r"DAPTKIT_[A-Z_]+", text(file))}
    listed = re.findall(r"^\| `(DAPTKIT_\w+)`", section("Environment variables"), re.MULTILINE)
    assert sorted(listed) == sorted(used)


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda p: p.parent.name)
def test_option_tables_of_the_plugins(page: Path) -> None:
    entries = tomllib.loads(text(page.parent / "pyproject.toml"))["project"]["entry-points"]
    # One by one: methods of one package may own the same role.
    methods = [loaded for name in entries.get("daptkit", ()) for loaded in load_methods([name])]
    readers = [r for r in load_readers() if r.spec.name in entries.get("daptkit.readers", ())]
    specs = [loaded.spec for loaded in (*methods, *readers)]
    options = {
        f"{spec.name}.{f.name}": f for spec in specs for f in dataclasses.fields(spec.options)
    }
    listed = set()
    for line in section("Options", page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        # `weight` is that of every method of the package, `mcc.weight` that of one.
        told = [
            [key for key in options if name in (key, key.partition(".")[2])]
            for name in re.findall(r"`(?:--)?([\w.]+)`", cells[0])
        ]
        if not line.startswith("| `") or not any(told):
            continue
        for keys, shown in zip(told, cells[1].replace("`", "").split(", "), strict=True):
            for key in keys:
                default = options[key].default
                same = shown == ("none" if default == "" else str(default).lower())
                assert same or float(shown) == default, key
            listed.update(keys)
    assert listed == options.keys()
