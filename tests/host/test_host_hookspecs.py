"""Each hook's docstring holds an example that runs."""

from __future__ import annotations

import doctest

import pytest

from daptkit.host import hookspecs

HOOKS = [name for name in vars(hookspecs) if name.startswith("daptkit_")]


def test_there_are_five_hooks():
    assert HOOKS == [
        "daptkit_methods",
        "daptkit_readers",
        "daptkit_models",
        "daptkit_scores",
        "daptkit_event",
    ]


@pytest.mark.parametrize("hook", HOOKS)
def test_example_runs(hook):
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(hookspecs, hook), hook)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
