"""The report of a run: measured in ``measure``, drawn by ``page``, put together by ``build``."""

from __future__ import annotations

from daptkit.report.build import build_report, report_trained

__all__ = ["build_report", "report_trained"]
