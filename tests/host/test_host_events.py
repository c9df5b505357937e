"""A listener hears events; one that fails is reported once and the rest go on."""

from __future__ import annotations

import sys

from daptkit.host import EventBus
from daptkit.plugin import Event

LISTENER = """
from daptkit.plugin import hookimpl
heard = []

@hookimpl
def daptkit_event(event):
    heard.append(event.kind)
"""

FAILING = LISTENER + "    raise ValueError('disk full')\n"


def test_a_failing_listener_is_switched_off_and_the_rest_hear(site, lines):
    kept, log = lines
    site.install("good-log", {"good_log": LISTENER}, {"daptkit.events": {"good": "good_log"}})
    site.install("bad-log", {"bad_log": FAILING}, {"daptkit.events": {"bad": "bad_log"}}, "2.0")
    site.install("no-log", {"no_log": "x = 1"}, {"daptkit.events": {"nolog": "no_log"}})
    bus = EventBus(log)
    for kind in ("fit_start", "log", "fit_end"):
        bus.emit(Event(kind=kind, step=0))
    assert sys.modules["good_log"].heard == ["fit_start", "log", "fit_end"]
    assert sys.modules["bad_log"].heard == ["fit_start"]
    mine = [line for line in kept if "-log" in line]
    assert len(mine) == 2
    assert any("no-log 1.0" in line and "does not implement" in line for line in mine)
    assert any("bad-log 2.0" in line and "ValueError: disk full" in line for line in mine)
