"""Where decoded images, trunk features and source-only models are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return ``$DAPTKIT_CACHE``, else ``daptkit`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("DAPTKIT_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "daptkit"
