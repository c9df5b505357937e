"""The method against daptkit's checks."""

from __future__ import annotations

from daptkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("adabn")
def test_adabn(check: Check) -> None:
    check()
