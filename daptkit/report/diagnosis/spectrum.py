"""The figure of both sites' power spectra."""

from __future__ import annotations

import numpy as np

from daptkit.report.diagnosis.words import Found
from daptkit.report.figures.style import (
    SOURCE,
    TARGET,
    Plot,
    house_style,
    light_grid,
    new_figure,
    to_svg,
)

_FLOOR = -11.0
"""Below this there is no power: images that are constant, or blown up from smaller ones."""


def spectrum_plots(found: Found) -> list[Plot]:
    """Draw log power over spatial frequency: a line a site, shaded to one standard deviation."""
    spectrum = found["spectrum"]
    if not spectrum["frequency"]:
        return []
    with house_style():
        figure = new_figure(3.3)
        axes = figure.add_subplot()
        light_grid(axes, "both")
        for name, colour in (("source", SOURCE), ("target", TARGET)):
            mean, std = (np.array(spectrum[name][key]) for key in ("mean", "std"))
            axes.plot(spectrum["frequency"], mean, color=colour, linewidth=1.6, label=name)
            axes.fill_between(
                spectrum["frequency"],
                np.maximum(mean - std, _FLOOR),
                mean + std,
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xscale("log")
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= spectrum["frequency"][0]]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("spatial frequency (1: the finest that pixels hold)")
        axes.set_ylabel("log₁₀ power")
        axes.legend(loc="upper right")
        return [
            Plot(
                name="spectrum",
                svg=to_svg(figure),
                title="Power spectrum",
                alt="Lines of the logarithm of power over spatial frequency, one line a site;"
                " diagnosis.json holds the numbers.",
            )
        ]
