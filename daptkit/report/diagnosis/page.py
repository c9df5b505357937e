"""diagnosis.json and diagnosis.html: a self-contained page that holds no path and no id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daptkit.report.diagnosis import words
from daptkit.report.diagnosis.figures import diagnosis_plots
from daptkit.report.diagnosis.spectrum import spectrum_plots
from daptkit.report.diagnosis.words import Found
from daptkit.report.page import environment
from daptkit.run import atomic_write, write_json


def write_diagnosis(folder: Path, found: dict[str, Any]) -> Path:
    """Write diagnosis.json and diagnosis.html; return the page's path.

    Args:
        folder: an existing folder.
        found: every figure of a diagnosis.

    Raises:
        DaptkitError: a file cannot be written.
    """
    write_json(folder / "diagnosis.json", found)
    page = folder / "diagnosis.html"
    atomic_write(page, render_diagnosis(found))
    return page


def render_diagnosis(found: Found) -> str:
    """Return the page.

    Args:
        found: content of diagnosis.json.
    """
    return (
        environment()
        .get_template("diagnosis.html")
        .render(
            found=found,
            diagnosis=found["diagnosis"],
            run=found["run"],
            data=found["data"],
            plots=diagnosis_plots(found) | {"spectrum": spectrum_plots(found)},
            words=words,
        )
    )
