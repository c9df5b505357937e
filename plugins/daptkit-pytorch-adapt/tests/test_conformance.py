"""Each method and score against daptkit's checks; the README lists what fails and why."""

from __future__ import annotations

import re
from pathlib import Path

from daptkit.testing import Check, parametrize_with_checks

README = Path(__file__).resolve().parent.parent / "README.md"

CONSTANT = "the loss is a constant whose gradient makes features longer"
NO_WEIGHTS = "it trains the model through its forward, and the check's stand-in has no parameters"
EXPECTED = {
    "afn": {"target_changes_loss": CONSTANT, "closes_known_gap": CONSTANT},
    "vat": dict.fromkeys(
        (
            "named_scalar_losses",
            "gradient_reaches_domains",
            "meta_device",
            "no_synchronisation",
            "closes_known_gap",
        ),
        NO_WEIGHTS,
    ),
    "pta_mmd": {"score_reads_predictions": "it compares features"},
    "pta_ist": {"score_reads_predictions": "it compares features"},
}


@parametrize_with_checks("mcc")
def test_mcc(check: Check) -> None:
    check()


@parametrize_with_checks("bnm")
def test_bnm(check: Check) -> None:
    check()


@parametrize_with_checks("infomax")
def test_infomax(check: Check) -> None:
    check()


@parametrize_with_checks("afn", expected_failed=EXPECTED["afn"])
def test_afn(check: Check) -> None:
    check()


@parametrize_with_checks("bsp")
def test_bsp(check: Check) -> None:
    check()


@parametrize_with_checks("vat", expected_failed=EXPECTED["vat"])
def test_vat(check: Check) -> None:
    check()


@parametrize_with_checks("mcd")
def test_mcd(check: Check) -> None:
    check()


@parametrize_with_checks("pta_mmd", kind="score", expected_failed=EXPECTED["pta_mmd"])
def test_pta_mmd(check: Check) -> None:
    check()


@parametrize_with_checks("pta_ist", kind="score", expected_failed=EXPECTED["pta_ist"])
def test_pta_ist(check: Check) -> None:
    check()


@parametrize_with_checks("pta_clusters", kind="score")
def test_pta_clusters(check: Check) -> None:
    check()


@parametrize_with_checks("pta_nearest", kind="score")
def test_pta_nearest(check: Check) -> None:
    check()


@parametrize_with_checks("pta_silhouette", kind="score")
def test_pta_silhouette(check: Check) -> None:
    check()


def test_the_readme_lists_every_check_that_fails() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", README.read_text(), re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", checks)) for name, checks in rows}
    assert listed == {name: set(checks) for name, checks in EXPECTED.items()}
