"""A run's configuration: flag over file over plugin default, and files that rerun a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from daptkit.config import AdaptConfig, resolve_config, to_toml
from daptkit.errors import UsageError
from daptkit.plugin import option

BASE = {"source": ("a",), "target": "b", "out": "run"}


@dataclass(frozen=True, kw_only=True)
class Alpha:
    weight: float = option(1.0, "Weight.", low=0.0, high=10.0)
    hidden: int = option(64, "Width.", low=1)
    cap: float | None = option(None, "Cap.")
    layers: tuple[str, ...] = option(("features",), "Layers.")


@dataclass(frozen=True, kw_only=True)
class Beta:
    soft: bool = option(True, "Soft counts.")


def methods(text):
    known = {"alpha": Alpha, "beta": Beta}
    return {name: known[name] for name in text.split("+") if name != "none"}


def resolve(file=None, **flags):
    return resolve_config({**BASE, **flags}, file, methods)


def write(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text)
    return file


def test_flag_over_file_over_default(tmp_path):
    file = write(
        tmp_path,
        'method = "alpha+beta"\nlr = 0.5\nepochs = 3\n[methods.alpha]\nweight = 2\nhidden = 8\n',
    )
    config = resolve(file, lr=0.25, method_options={"alpha": {"hidden": "16"}})
    assert (config.lr, config.epochs, config.batch_size) == (0.25, 3, AdaptConfig.batch_size)
    assert config.method_options == {
        "alpha": {"weight": 2.0, "hidden": 16, "cap": None, "layers": ("features",)},
        "beta": {"soft": True},
    }


def test_the_written_file_reruns_the_run(tmp_path):
    config = resolve(
        source=("site a", "b\\c"),
        method="beta+alpha",
        model_kwargs="pad_type=same,depth=2",
        mean="0.5,.25,1",
        std=0.5,
        img_size=32,
        clip_grad=None,
        resume=True,
        pretrained_path="w.pth",
        method_options={"alpha": {"cap": 3.5, "layers": ["x", "y"]}, "beta": {"soft": "no"}},
    )
    again = resolve_config({"out": "new"}, write(tmp_path, to_toml(config)), methods)
    expected = dataclasses.replace(
        config,
        source=tuple(str(Path(p).absolute()) for p in config.source),
        target=str(Path("b").absolute()),
        pretrained_path=str(Path("w.pth").absolute()),
        out="new",
        resume=False,
    )
    assert again == expected
    assert list(again.method_options) == ["beta", "alpha"]


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ("a=1,b=two", ("a=1", "b=two")),
        ("a=1 b=2", ("a=1", "b=2")),
        (["a=(1,2)", "b=3"], ("a=(1,2)", "b=3")),
        ("a=1,2,b=3", ("a=1,2", "b=3")),
    ],
)
def test_model_kwargs(value, pairs):
    assert resolve(model_kwargs=value).model_kwargs == pairs


@pytest.mark.parametrize(
    ("value", "numbers"), [("0.5", (0.5,)), (".1,.2", (0.1, 0.2)), ([".1,.2", 3], (0.1, 0.2, 3.0))]
)
def test_mean(value, numbers):
    assert resolve(mean=value).mean == numbers


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": ()}, "--source is missing"),
        ({"target": ""}, "--target is missing"),
        ({"out": ""}, "--out is missing"),
        ({"epoch": 3}, "unknown option 'epoch'. Did you mean 'epochs'"),
        ({"lr": -1}, "'lr' must lie in"),
        ({"mean": "half"}, "'mean' takes a number"),
        ({"mean": None}, "'mean' takes a number"),
        ({"model_kwargs": "pad_type"}, "--model-kwargs takes KEY=VALUE"),
        ({"method_options": {"alpha": {}}}, "-m 'none' does not name"),
        (
            {"method": "alpha", "method_options": {"alpha": {"wait": 1}}},
            "unknown option 'alpha.wait'. Did you mean 'weight'",
        ),
        (
            {"method": "alpha", "method_options": {"alpha": {"weight": 11}}},
            "'alpha.weight' must lie in [0.0, 10.0]",
        ),
    ],
)
def test_wrong_values(flags, message):
    with pytest.raises(UsageError) as caught:
        resolve(**flags)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'. Did you mean 'epochs'"),
        ("img-size = 3", "unknown key 'img-size'. Did you mean 'img_size'"),
        ("method_options = 3", "unknown key 'method_options'"),
        ("[alpha]\nweight = 1", "unknown key 'alpha'"),
        ("methods = 3", "as a table [methods.NAME]"),
        ("[methods]\nalpha = 3", "as a table [methods.NAME]"),
        ('method = "alpha"\n[methods.alfa]\nweight = 1', "does not name. Did you mean 'alpha'"),
        ('method = "alpha"\n[methods.alpha]\nwait = 1', "Did you mean 'weight'"),
        ("lr = 0.1.2", "is not valid TOML"),
        ('lr = "fast"', "'lr' takes a number"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        resolve(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.toml: No such file"):
        resolve(tmp_path / "absent.toml")


def test_a_method_flag_drops_the_tables_of_the_method_it_replaces(tmp_path):
    file = write(tmp_path, 'method = "alpha+beta"\n[methods.alpha]\nweight = 2\n')
    assert resolve(file, method="beta").method_options == {"beta": {"soft": True}}
    assert resolve(file, method="alpha").method_options["alpha"]["weight"] == 2.0


def test_a_method_flag_does_not_excuse_other_tables(tmp_path):
    file = write(tmp_path, 'method = "alpha"\n[methods.gamma]\nweight = 2\n')
    with pytest.raises(UsageError, match="'gamma'"):
        resolve(file, method="beta")
