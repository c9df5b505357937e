"""Deprecated names work, and tell the line that uses them what to use instead."""

from __future__ import annotations

from types import ModuleType

import pytest

from daptkit.deprecation import deprecated, moved_names


@deprecated("daptkit.nn.mmd2", since="0.3")
def twice(x: int, *, plus: int = 0) -> int:
    """Return 2 x."""
    return 2 * x + plus


@deprecated("daptkit.method.Method", since="0.3")
class Old:
    def __init__(self, size: int) -> None:
        self.size = size


class Derived(Old):
    pass


def test_a_function_warns_at_its_caller_and_works() -> None:
    with pytest.warns(DeprecationWarning, match=r"twice is deprecated since daptkit 0\.3") as told:
        assert twice(3, plus=1) == 7
    assert "use daptkit.nn.mmd2" in str(told[0].message)
    assert told[0].filename == __file__
    assert (twice.__name__, twice.__doc__) == ("twice", "Return 2 x.")


def test_a_class_stays_a_class() -> None:
    assert isinstance(Old, type)
    with pytest.warns(DeprecationWarning, match="Old is deprecated"):
        made = Derived(4)
    assert isinstance(made, Old)
    assert made.size == 4


def test_a_name_that_has_moved_is_found() -> None:
    module = ModuleType("daptkit_old_home")
    vars(module)["__getattr__"] = moved_names(
        module.__name__, {"slope": "daptkit.nn:ramp"}, since="0.3"
    )
    from daptkit.nn import ramp

    with pytest.warns(
        DeprecationWarning, match=r"daptkit_old_home\.slope .* use daptkit\.nn\.ramp"
    ):
        assert module.slope is ramp
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = module.other
