"""The methods against daptkit's checks."""

from __future__ import annotations

from daptkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("histmatch")
def test_histmatch(check: Check) -> None:
    check()


@parametrize_with_checks("colour")
def test_colour(check: Check) -> None:
    check()


@parametrize_with_checks("fda")
def test_fda(check: Check) -> None:
    check()
