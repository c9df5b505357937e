"""One look for every figure: fonts, colours, and SVG that is the same for the same data."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

SOURCE = "#0072B2"
TARGET = "#D55E00"
BEFORE = "#8c8c8c"
AFTER = "#111111"
INK = "#222222"
FAINT = "#dddddd"
MODEL_COLOURS = {"source-only": BEFORE, "adapted": AFTER}
"""Blue and vermillion of Okabe and Ito, told apart by all colour visions, are for the domains; the
models differ in lightness, which print keeps."""

WIDTH = 4.6
"""Inches. Shown 358 px wide, as on a phone, text of 10.5 points is then 11 px high."""

SMALL_WIDTH = 3.5
"""Inches, of figures that stand three in a row."""

FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans'"

_OURS: dict[str, Any] = {
    "svg.hashsalt": "daptkit",
    # Text stays text: small files, sharp print, and the reader's fonts for every script.
    "svg.fonttype": "none",
    # Class names may hold a dollar sign.
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """One figure: its file name without ending, its SVG, and words for who cannot see it."""

    name: str
    svg: bytes
    title: str
    alt: str


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw with these settings whatever the user's matplotlib is set to, and put theirs back."""
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with warnings.catch_warnings(), mpl.rc_context():
        # A class name in a script that the measuring font lacks is still written as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Defaults that matplotlib deprecated warn when they are set.
        warnings.simplefilter("ignore", mpl.MatplotlibDeprecationWarning)
        settings: Any = mpl.rcParams
        settings.update(defaults)
        settings.update(_OURS)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, sizes in inches, that pyplot does not know of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    return figure


def to_svg(figure: Figure) -> bytes:
    """Return the figure as SVG; the same drawing gives the same bytes."""
    out = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", dpi=200, metadata=metadata)
    return out.getvalue().replace(b"'DejaVu Sans'", FONTS.encode())


def share_ticks(axis: Any) -> None:
    """Write the ticks of an axis of shares in [0, 1] as percentages."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def light_grid(axes: Axes, axis: Any = "y") -> None:
    """Draw faint lines that values can be read off at."""
    axes.grid(axis=axis, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
