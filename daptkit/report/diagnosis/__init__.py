"""A diagnosis for people: a summary for the terminal and a self-contained page."""

from __future__ import annotations

from daptkit.report.diagnosis.page import write_diagnosis
from daptkit.report.diagnosis.text import summary_text

__all__ = ["summary_text", "write_diagnosis"]
