"""Which images a simulated site has, and what it calls them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from daptkit.data.population import (
    Population,
    add_label_noise,
    complete_prior,
    draw_population,
    redefine,
    sample_to_prior,
)
from daptkit.data.refs import ArrayRef
from daptkit.data.table import ImageTable
from daptkit.errors import DataError, UsageError

CLASSES = ("a", "b", "c")
COUNTS = {"a": 500, "b": 300, "c": 200}
LABELS = tuple(np.random.default_rng(0).permutation([n for n in COUNTS for _ in range(COUNTS[n])]))
ROWS = np.arange(1000)


def counted(labels: tuple[str, ...] | list[str], rows: np.ndarray) -> Counter[str]:
    return Counter(labels[row] for row in rows)


def table(labels: tuple[str, ...], splits: tuple[str, ...] | None = None) -> ImageTable:
    pixels = np.zeros((len(labels), 2, 2), np.uint8)
    return ImageTable(
        domain="source",
        names=tuple(f"{row}.png" for row in range(len(labels))),
        refs=tuple(ArrayRef(pixels, row) for row in range(len(labels))),
        splits=splits or ("",) * len(labels),
        labels=labels,
    )


def drawn(images: ImageTable, **asked: object) -> Population:
    values = {"split": None, "prior": {}, "redefinitions": {}, "label_noise": 0.0, "seed": 0}
    return draw_population(images, **{**values, **asked})


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"a": 0.1}, {"a": 0.1, "b": 0.54, "c": 0.36}),
        ({"a": 0.0}, {"a": 0.0, "b": 0.6, "c": 0.4}),
        ({"c": 1.0}, {"a": 0.0, "b": 0.0, "c": 1.0}),
        ({"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 0.2, "b": 0.3, "c": 0.5}),
    ],
)
def test_classes_not_named_share_the_rest_in_their_old_proportions(
    asked: dict[str, float], wanted: dict[str, float]
) -> None:
    assert complete_prior(asked, COUNTS, CLASSES) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"a": 0.7, "b": 0.4}, "sum to 1.1, not 1"),
        ({"a": 0.2, "b": 0.3, "c": 0.4}, "sum to 0.9, not 1, and no other class takes the rest"),
        ({"a": 1.2}, r"--prior a=1.2 is not a share in \[0, 1\]"),
        ({"a": float("nan")}, "--prior a=nan is not a share"),
        ({"bb": 0.2}, r"no class 'bb' \(have: a, b, c\)"),
    ],
)
def test_priors_that_cannot_be(asked: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        complete_prior(asked, COUNTS, CLASSES)


def test_an_unknown_class_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'pneumonia'"):
        complete_prior({"pnuemonia": 0.1}, {"normal": 5, "pneumonia": 5}, ("normal", "pneumonia"))


def test_a_prior_for_a_class_without_images() -> None:
    with pytest.raises(DataError, match="asks for the class 'c', of which there are no images"):
        complete_prior({"c": 0.1}, {"a": 5, "b": 5, "c": 0}, CLASSES)
    with pytest.raises(DataError, match=r"leaves 0.5 to the classes b, c"):
        complete_prior({"a": 0.5}, {"a": 5, "b": 0, "c": 0}, CLASSES)
    assert complete_prior({"c": 0.0}, {"a": 5, "b": 5, "c": 0}, CLASSES)["c"] == 0.0


@pytest.mark.parametrize(
    "prior",
    [
        {"a": 0.05, "b": 0.57, "c": 0.38},
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
        {"a": 0.5, "b": 0.3, "c": 0.2},
        {"a": 0.0, "b": 0.013, "c": 0.987},
    ],
)
def test_the_largest_subsample_reaches_the_prior_within_one_image(prior: dict[str, float]) -> None:
    rows = sample_to_prior(LABELS, ROWS, prior, seed=0)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())
    found = counted(LABELS, rows)
    for name, share in prior.items():
        assert abs(found[name] - share * len(rows)) < 1
    # One image more of the whole would need more of some class than there is.
    assert any(share * (len(rows) + 1) > COUNTS[name] for name, share in prior.items())


def test_a_subsample_is_stable_and_a_rarer_class_keeps_some_of_the_same_images() -> None:
    def kept(share: float, seed: int) -> set[int]:
        prior = complete_prior({"a": share}, COUNTS, CLASSES)
        rows = sample_to_prior(LABELS, ROWS, prior, seed)
        return {row for row in rows.tolist() if LABELS[row] == "a"}

    assert kept(0.2, 0) == kept(0.2, 0)
    assert kept(0.1, 0) < kept(0.2, 0)
    assert kept(0.1, 0) != kept(0.1, 1)


def test_redefinition_relabels_the_stated_share_at_random() -> None:
    labels = redefine(LABELS, ROWS, {"a": ("b", 0.3)}, CLASSES, seed=0)
    changed = [row for row in range(1000) if labels[row] != LABELS[row]]
    assert len(changed) == 150
    assert {(LABELS[row], labels[row]) for row in changed} == {("a", "b")}
    half = [row for row in range(1000) if LABELS[row] == "a"][:250]
    assert 50 < len(set(changed) & set(half)) < 100


def test_all_classes_are_redefined_at_once() -> None:
    swapped = redefine(LABELS, ROWS, {"a": ("b", 1.0), "b": ("a", 1.0)}, CLASSES, seed=0)
    swap = {"a": "b", "b": "a", "c": "c"}
    assert swapped == [swap[label] for label in LABELS]


@pytest.mark.parametrize(
    ("redefined", "message"),
    [
        ({"aa": ("b", 1.0)}, "--redefine: there is no class 'aa'"),
        ({"a": ("d", 1.0)}, "--redefine: there is no class 'd'"),
        ({"a": ("a", 1.0)}, "needs two classes"),
        ({"a": ("b", 1.5)}, r"--redefine a=b:1.5 needs .* share in \[0, 1\]"),
    ],
)
def test_redefinitions_that_cannot_be(
    redefined: dict[str, tuple[str, float]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        redefine(LABELS, ROWS, redefined, CLASSES, seed=0)


def test_label_noise_replaces_the_stated_share_by_the_other_classes_equally() -> None:
    labels = add_label_noise(LABELS, ROWS, 0.4, CLASSES, seed=0)
    changed = [(LABELS[row], labels[row]) for row in range(1000) if labels[row] != LABELS[row]]
    assert len(changed) == 400
    for name, there in COUNTS.items():
        others = [new for old, new in changed if old == name]
        assert len(others) == pytest.approx(0.4 * there, abs=4 * np.sqrt(0.24 * there))
        smaller = min(Counter(others).values())
        assert len(Counter(others)) == 2
        assert smaller > 0.5 * len(others) - 2.5 * np.sqrt(len(others))
    assert add_label_noise(LABELS, ROWS, 0.0, CLASSES, seed=0) == list(LABELS)
    assert labels != add_label_noise(LABELS, ROWS, 0.4, CLASSES, seed=1)


def test_label_noise_is_a_share() -> None:
    with pytest.raises(UsageError, match=r"--label-noise 1.2 is not a share in \[0, 1\]"):
        add_label_noise(LABELS, ROWS, 1.2, CLASSES, seed=0)


def test_only_images_of_the_site_are_relabelled() -> None:
    few = np.arange(0, 1000, 10)
    noisy = add_label_noise(LABELS, few, 1.0, CLASSES, seed=0)
    merged = redefine(LABELS, few, {"a": ("b", 1.0)}, CLASSES, seed=0)
    assert [row for row in range(1000) if noisy[row] != LABELS[row]] == few.tolist()
    assert {row for row in range(1000) if merged[row] != LABELS[row]} < set(few.tolist())


def test_a_population_is_sampled_by_old_labels_then_redefined_then_noisy() -> None:
    people = drawn(
        table(LABELS), prior={"a": 0.5}, redefinitions={"a": ("c", 0.5)}, label_noise=0.1, seed=4
    )
    rows = people.rows
    assert people.classes == CLASSES
    assert counted(people.before, rows) == {"a": 500, "b": 300, "c": 200}
    assert people.prior == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
    assert counted(people.redefined, rows) == {"a": 250, "b": 300, "c": 450}
    changed = [row for row in rows if people.after[row] != people.redefined[row]]
    assert len(changed) == 100


def test_a_population_comes_from_one_split_and_its_images_draw_the_same_lots() -> None:
    splits = tuple("train" if row % 2 else "test" for row in range(1000))
    whole = drawn(table(LABELS, splits), label_noise=0.5)
    part = drawn(table(LABELS, splits), split="test", label_noise=0.5)
    assert part.rows.tolist() == part.candidates.tolist() == list(range(0, 1000, 2))
    agree = np.mean([whole.after[row] == part.after[row] for row in part.rows])
    assert agree > 0.9
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        drawn(table(LABELS, splits), split="tset")


def test_a_missing_label_and_a_single_class_are_refused() -> None:
    with pytest.raises(DataError, match="1 images of the source have no label"):
        drawn(table(("a", "b", "")))
    with pytest.raises(DataError, match="one class only"):
        drawn(table(("a", "a")))


def test_a_class_that_the_split_lacks_is_known_but_cannot_be_asked_for() -> None:
    images = table(("a", "b", "c"), ("train", "train", "test"))
    with pytest.raises(DataError, match="asks for the class 'c'"):
        drawn(images, split="train", prior={"c": 0.5})
    assert drawn(images, split="train", prior={"a": 0.5}).rows.tolist() == [0, 1]
