"""Tables of images: rows, groups, fingerprints, splits and joining."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daptkit.data import (
    ImageTable,
    choose_split,
    concat_tables,
    find_overlaps,
    read_table,
    train_val_split,
)
from daptkit.data.refs import ArrayRef
from daptkit.data.splits import hold_out
from daptkit.errors import DataError


def make_table(n: int = 6, **columns: tuple[str, ...] | None) -> ImageTable:
    images = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2)
    return ImageTable(
        domain="source",
        names=tuple(f"n{row}" for row in range(n)),
        refs=tuple(ArrayRef(images, row) for row in range(n)),
        splits=columns.pop("splits", None) or ("",) * n,
        **columns,
    )


def test_select_keeps_rows_together() -> None:
    table = make_table(labels=tuple("abcabc"), patients=tuple("112233")).select([4, 0])
    assert (table.names, table.labels, table.patients) == (("n4", "n0"), ("b", "a"), ("3", "1"))
    assert len(table.select([])) == 0


def test_fingerprint_depends_on_content_not_on_place(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        (tmp_path / "one" / name).mkdir(parents=True)
        pixels = np.full((3, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "one" / name / "x.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def fingerprint(name: str) -> str:
        return read_table(tmp_path / name, domain="source", labelled=True).fingerprint()

    first = fingerprint("one")
    assert len(first) == 64 and first == fingerprint("two")
    Image.fromarray(np.full((3, 3), 9, np.uint8)).save(tmp_path / "two" / "a" / "x.png")
    assert fingerprint("two") != first


def test_fingerprint_sees_every_column() -> None:
    base = make_table(labels=tuple("aabbcc"))
    variants = [
        base,
        base.select([1, 0, 2, 3, 4, 5]),
        make_table(labels=tuple("aabbca")),
        make_table(labels=tuple("aabbcc"), patients=tuple("112233")),
        make_table(labels=tuple("aabbcc"), splits=("train",) * 6),
        make_table(),
    ]
    assert len({table.fingerprint() for table in variants}) == len(variants)
    changed = make_table(labels=tuple("aabbcc"))
    ref = changed.refs[0]
    assert isinstance(ref, ArrayRef)
    ref.array[5, 1, 1] += 1
    assert changed.fingerprint() != base.fingerprint()


def test_choose_split() -> None:
    table = make_table(splits=("train", "train", "val", "test", "", "test"))
    assert choose_split(table, None, "test").tolist() == [3, 5]
    assert choose_split(table, "train", "test").tolist() == [0, 1]
    assert choose_split(table, "all", "test").tolist() == list(range(6))
    assert choose_split(make_table(), None, "train").tolist() == list(range(6))
    with pytest.raises(DataError, match=r"no split 'tset': it has test, train, val.*'test'"):
        choose_split(table, "tset", "train")
    with pytest.raises(DataError, match="no splits"):
        choose_split(make_table(), "test", "train")


def test_concat_joins_columns() -> None:
    first = make_table(2, labels=("a", "b"), splits=("train", "test"))
    second = make_table(2, labels=("b", "c"), patients=("1", ""))
    joined = concat_tables([first, second])
    assert joined.labels == ("a", "b", "b", "c")
    assert joined.splits == ("train", "test", "train", "train")
    assert joined.patients == ("", "", "1", "")
    assert joined.groups().tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"some .* have labels"):
        concat_tables([first, make_table(2)])
    with pytest.raises(DataError, match="no images"):
        concat_tables([])


def test_equal_ids_are_one_patient_unless_sites_differ() -> None:
    def of(site: str) -> ImageTable:
        return make_table(2, patients=("1", "2"), sites=(site, site))

    assert concat_tables([of("A"), of("B")]).groups().tolist() == [0, 1, 2, 3]
    assert concat_tables([of("A"), of("A")]).groups().tolist() == [0, 1, 0, 1]


def test_concat_keeps_sites_and_numbers_paths_that_name_none() -> None:
    named = make_table(2, sites=("A", ""))
    joined = concat_tables([make_table(1), named, make_table(1)])
    assert joined.sites == ("source 1", "A", "source 2", "source 3")
    assert concat_tables([named]).sites == ("A", "")


def test_a_stand_in_for_the_site_does_not_make_patients_differ() -> None:
    table = make_table(2, patients=("1", "2"))
    assert concat_tables([table, table]).groups().tolist() == [0, 1, 0, 1]


def test_val_split_of_the_source_is_used() -> None:
    table = make_table(splits=("train", "val", "train", "test", "val", "train"))
    lines: list[str] = []
    train, val = train_val_split(
        table, [0, 1, 1, 0, 1, 0], split=None, val_fraction=0.2, seed=0, log=lines.append
    )
    assert train.tolist() == [0, 2, 5] and val.tolist() == [1, 4]
    assert len(lines) == 1 and "lacks 1" in lines[0]


def test_patient_in_train_and_val() -> None:
    splits = ("train", "val", "train", "train", "val", "train")
    table = make_table(splits=splits, patients=("1", "1", "2", "3", "4", "5"))
    (overlap,) = find_overlaps([table], None)
    assert overlap.examples == (("n0", "n1"),)
    # Once that was accepted, the split is taken as it is.
    train, val = train_val_split(table, [0, 1] * 3, split=None, val_fraction=0.2, seed=0)
    assert (train.tolist(), val.tolist()) == ([0, 2, 3, 5], [1, 4])
    apart = make_table(splits=splits, patients=("01", "1", "2", "3", "4", "5"))
    assert len(train_val_split(apart, [0, 1] * 3, split=None, val_fraction=0.2, seed=0)[1]) == 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_part_is_stratified_and_grouped(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = np.sort(generator.integers(0, 120, 600))
    labels = generator.choice(4, 600, p=[0.6, 0.25, 0.1, 0.05])
    held = hold_out(labels, groups, fraction=0.2, seed=seed)
    assert not set(groups[held]) & set(groups[~held])
    assert 0.15 < held.mean() < 0.25
    for label in range(4):
        of_class = labels == label
        assert 0.1 <= held[of_class].mean() <= 0.35
    assert (held == hold_out(labels, groups, fraction=0.2, seed=seed)).all()
    assert (held != hold_out(labels, groups, fraction=0.2, seed=seed + 1)).any()


def test_small_classes_give_one_and_keep_one() -> None:
    labels = np.array([0] * 50 + [1, 1] + [2])
    held = hold_out(labels, np.arange(53), fraction=0.2, seed=3)
    assert [int(held[labels == label].sum()) for label in range(3)] == [10, 1, 0]


def test_a_patient_with_most_images_stays_in_training() -> None:
    labels = np.array([0] * 100 + [1] * 10)
    groups = np.array([0] * 90 + list(range(1, 11)) + list(range(11, 21)))
    held = hold_out(labels, groups, fraction=0.2, seed=0)
    assert not held[:90].any() and held[90:100].any() and held[100:].sum() == 2


def test_a_class_of_two_large_patients_gives_the_smaller() -> None:
    held = hold_out([0] * 12 + [1] * 4, [0] * 7 + [1] * 5 + [2, 3, 4, 5], fraction=0.1, seed=0)
    assert held[7:12].all() and not held[:7].any()


def test_split_without_val_or_patients() -> None:
    table = make_table(splits=("train",) * 4 + ("test",) * 2)
    train, val = train_val_split(table, [0, 0, 1, 1, 0, 1], split=None, val_fraction=0.5, seed=0)
    assert sorted([*train, *val]) == [0, 1, 2, 3] and len(val) == 2
    with pytest.raises(DataError, match="one patient only"):
        train_val_split(make_table(2), [0, 1], split=None, val_fraction=0.5, seed=0)
    everything = make_table(splits=("train", "train", "train", "val", "val", "val"))
    train, val = train_val_split(everything, [0, 1] * 3, split="all", val_fraction=0.3, seed=0)
    assert len(train) == 4 and len(val) == 2
