"""Distances at the stages of a frozen backbone, kept between runs like its features."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import daptkit
from daptkit.errors import DaptkitError
from daptkit.model import default_cache_dir
from daptkit.model.cache import feature_key
from daptkit.run import write_json
from daptkit.train.adaptation import Trained
from daptkit.train.deliver import Delivered
from daptkit.train.domains import Rows
from daptkit.train.trunk import alignment_key

FORMAT = 1
"""Raised when the meaning of an entry changes, so that older entries are not read."""

Distances = list[tuple[float | None, float | None]]
"""Proxy A-distance and MMD^2 of each stage."""


def kept_distances(
    trained: Trained,
    model: Delivered,
    taps: Sequence[str],
    rows: Mapping[str, Rows],
    compute: Callable[[], Distances],
) -> Distances:
    """Return the distances at stages of the frozen backbone, from the cache where they are there.

    An entry holds numbers alone. A cache that cannot be read or written costs the next run its
    time and nothing else.

    Args:
        trained: the run.
        model: one of its models, and with it the images that it sees.
        taps: layers of the backbone.
        rows: images measured, by domain.
        compute: measures the distances.
    """
    path = default_cache_dir() / "stages" / f"{_key(trained, model, taps, rows)}.json"
    stored = _read(path, len(taps))
    if stored is not None:
        return stored
    found = compute()
    with contextlib.suppress(DaptkitError):
        write_json(path, found)
    return found


def _read(path: Path, n: int) -> Distances | None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [(_number(a), _number(m)) for a, m in entries]
    except (OSError, ValueError, TypeError):
        return None
    return found if len(found) == n else None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _key(trained: Trained, model: Delivered, taps: Sequence[str], rows: Mapping[str, Rows]) -> str:
    """Return the hash of everything that the distances depend on."""
    prepared, net, passes = trained.prepared, trained.twin.net, model.fit.passes
    data: dict[str, Any] = {
        "data": prepared.fingerprints,
        "conversion": prepared.conversion.to_json(),
    }
    changed = {name: alignment_key(getattr(passes.data, name)) for name in ("source", "target")}
    if any(changed.values()):
        data["alignment"] = changed
    identity = {
        "format": FORMAT,
        "daptkit": daptkit.__version__,
        "features": feature_key(net, data, passes.precision.device),
        "taps": list(taps),
        "rows": {d: hashlib.sha256(chosen.tobytes()).hexdigest() for d, chosen in rows.items()},
        "seed": trained.config.seed,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
