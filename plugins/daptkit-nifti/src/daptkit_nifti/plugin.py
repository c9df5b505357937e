"""NIfTI as daptkit sees it before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import ReaderSpec, hookimpl, option

AXES = ("sagittal", "coronal", "axial")
"""Planes by the axis that they cut: right, anterior, superior."""


@dataclass(frozen=True, kw_only=True)
class NiftiOptions:
    """Options of ``nifti``."""

    axis: str = option("axial", "Plane of the slices.", choices=AXES)
    volume: int | None = option(None, "Which volume of a 4-D file, from 0.", low=0)
    window: str = option(
        "", "Values shown as black and white; empty: the run's own.", metavar="LOW:HIGH"
    )
    nan: str = option(
        "refuse",
        "Slices with NaN or infinite voxels: refuse, or low: the lowest value of the slice.",
        choices=("refuse", "low"),
    )
    unoriented: str = option(
        "refuse",
        "Files without orientation: refuse, or assume left, anterior, superior as in Analyze.",
        choices=("refuse", "assume"),
    )

    def __post_init__(self) -> None:
        _ = self.limits

    @property
    def limits(self) -> tuple[float, float] | None:
        """The window, low and high; ``None`` where none is set.

        Raises:
            UsageError: it is not ``LOW:HIGH``; on construction already.
        """
        if not self.window:
            return None
        # Imports numpy, so only for a run that sets a window.
        from daptkit.reader import parse_window

        return parse_window(self.window, "option 'nifti.window'")


@hookimpl
def daptkit_readers() -> ReaderSpec:
    """Offer ``nifti``."""
    return ReaderSpec(
        name="nifti",
        extensions=(".nii", ".nii.gz"),
        factory="daptkit_nifti.reader:read_slice",
        count="daptkit_nifti.reader:count_slices",
        sniff="daptkit_nifti.header:is_nifti",
        options=NiftiOptions,
        summary="Slices of NIfTI-1 and NIfTI-2 volumes, upright.",
    )
