"""The child process of ``plugins list``: imports plugin modules one by one and reports each.

It reads one unit as a line of JSON from stdin and answers with one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
from typing import IO, Any

from daptkit.host.entry import Unit
from daptkit.host.registry import Finding, inspect_unit
from daptkit.plugin import ReaderSpec

READY = "ready"


def main() -> None:
    """Answer until stdin ends."""
    requests, answers = _take(0, os.O_RDONLY, "r"), _take(1, os.O_WRONLY, "w")
    print(READY, file=answers, flush=True)
    for line in requests:
        fields = json.loads(line)
        for key in ("entries", "unused"):
            fields[key] = tuple((kind, name) for kind, name in fields[key])
        findings = inspect_unit(Unit(**fields), timeout=None)  # the parent holds the clock
        print(json.dumps([_row(f) for f in findings]), file=answers, flush=True)
    os._exit(0)  # threads and exit handlers of plugins cannot hold the process up


def _take(descriptor: int, mode: int, text_mode: str) -> IO[str]:
    """Move a standard stream out of the plugins' reach and leave them the null device."""
    stream = os.fdopen(os.dup(descriptor), text_mode, encoding="utf-8")
    null = os.open(os.devnull, mode)
    os.dup2(null, descriptor)
    os.close(null)
    return stream


def _row(finding: Finding) -> dict[str, Any]:
    spec = finding.spec
    if isinstance(spec, ReaderSpec):
        summary = " ".join([*filter(None, [spec.summary]), f"Reads {', '.join(spec.extensions)}."])
    else:
        summary = getattr(spec, "summary", "")
    return {
        "kind": finding.kind,
        "name": finding.name,
        "reason": finding.reason,
        "summary": summary,
        "reference": getattr(spec, "reference", ""),
        "addresses": sorted(getattr(spec, "addresses", ())),
        "roles": sorted(getattr(spec, "roles", ())),
        "risks": sorted(getattr(spec, "risks", ())),
        "corrects": sorted(getattr(spec, "corrects", ())),
    }
