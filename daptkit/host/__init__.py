"""Discovery, isolation and loading of plugins; importing this package imports no plugin."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daptkit.host.events import EventBus, emit_event
    from daptkit.host.listing import PluginStatus, list_plugins
    from daptkit.host.loading import (
        Loaded,
        LoadedMethod,
        load_methods,
        load_models,
        load_readers,
        load_scores,
        method_options,
        parse_method,
    )

_HOMES = {
    "EventBus": "events",
    "emit_event": "events",
    "PluginStatus": "listing",
    "list_plugins": "listing",
    "Loaded": "loading",
    "LoadedMethod": "loading",
    "load_methods": "loading",
    "load_models": "loading",
    "load_readers": "loading",
    "load_scores": "loading",
    "method_options": "loading",
    "parse_method": "loading",
}

__all__ = [
    "EventBus",
    "Loaded",
    "LoadedMethod",
    "PluginStatus",
    "emit_event",
    "list_plugins",
    "load_methods",
    "load_models",
    "load_readers",
    "load_scores",
    "method_options",
    "parse_method",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use: the command line's start-up pays for no more."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"daptkit.host.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'daptkit.host' has no attribute {name!r}")
