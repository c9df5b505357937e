"""Packages to start a plugin from; importing this imports no torch."""

from daptkit.scaffold.write import Written, new_plugin

__all__ = ["Written", "new_plugin"]
