"""The report's pictures, one file for each question; only those are made that a comparison has the data for."""

from __future__ import annotations

from weightformer.compare.table import Comparison
from weightformer.report.pictures import agreement, calibration, costs, gates, style, weights
from weightformer.report.pictures.style import Picture

__all__ = ["Picture", "of_gates", "of_results"]


def of_results(comparison: Comparison) -> list[Picture]:
    """Return the pictures of what came out. The same comparison gives the same pictures, byte for byte."""
    with style.styled():
        found = [
            costs.inference(comparison),
            costs.steps(comparison),
            costs.seconds(comparison),
            calibration.reliability(comparison),
            agreement.agreement(comparison),
            weights.weights(comparison),
        ]
    return [picture for picture in found if picture is not None]


def of_gates(comparison: Comparison) -> list[Picture]:
    """Return the pictures of the learned gates."""
    with style.styled():
        return gates.gates(comparison)
