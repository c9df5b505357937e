"""Packages of methods that work at prediction, for the `site` of fake packages."""

from __future__ import annotations

from typing import Any

SPEC = """
from dataclasses import dataclass
from daptkit.plugin import MethodSpec, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    strength: float = option(1.0, "How much.", low=0.0, high=2.0)
    table_file: str = option("none", "A file.")
    EXTRA

@hookimpl
def daptkit_methods():
    return MethodSpec(name="shade", summary="Shades.", factory="plugin_shade_method:Shade",
                      options=Options, roles=frozenset({ROLES}), trains="none")
"""

# Moves the target's mean and spread of each channel to the source's.
METHOD = """
import torch
from daptkit.method import Method

class Shade(Method):
    def __init__(self, options, task):
        super().__init__(options, task)
        self.register_buffer("source", torch.zeros(SHAPE))
        self.register_buffer("target", torch.zeros(SHAPE))
        self.count = torch.rand(1)  # a draw that must not be seen elsewhere

    def fit_images(self, source, target):
        self.seen = len(source), len(target)
        for name, images in (("source", source), ("target", target)):
            values = images.transpose(0, 1).flatten(1).double()
            found = torch.stack([values.mean(1).mean(), values.std(1).mean()])
            getattr(self, name).copy_(found)

    def align_images(self, images, domain):
        if domain == "source" and not CHANGES_SOURCE:
            return images
        shift = self.source[0] - self.target[0]
        scale = self.source[1] / self.target[1]
        moved = (images - self.target[0]) * scale + self.target[0] + shift
        return images + self.options.strength * (moved - images)

    def align_features(self, features, domain):
        return features * 2

    def report(self):
        return {"source_mean": float(self.source[0]), "target_mean": float(self.target[0])}
"""


def install_shade(
    site: Any,
    version: str = "1.3",
    *,
    roles: str = '"inputs"',
    extra: str = "",
    shape: str = "2",
    changes_source: bool = False,
    method: str = METHOD,
) -> None:
    """Install the package `fake-shade` with the method `shade` into a site."""
    spec = SPEC.replace("ROLES", roles).replace("EXTRA", extra)
    source = method.replace("SHAPE", shape).replace("CHANGES_SOURCE", str(changes_source))
    site.install(
        "fake-shade",
        {"plugin_shade": spec, "plugin_shade_method": source},
        {"daptkit": {"shade": "plugin_shade"}},
        version,
    )
