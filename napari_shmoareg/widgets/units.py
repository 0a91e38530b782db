"""Mm and the axes S, A, R, whatever else a viewer shows.

napari gives positions in the smallest unit of all layers, and puts further axes, such as time, before the last three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pint
from numpy.typing import ArrayLike, NDArray

from napari_shmoareg.widgets.placement import UNITS

if TYPE_CHECKING:
    from napari import Viewer


ASIDE = "fewer than two of the axes S, A, R are on the canvas. Change the order of the axes (Ctrl+E)."


def mm_per(units: Sequence[Any] | None) -> float:
    """Mm per unit of length, of the units of some axes; 1 for pixels, and where there is no one unit of length."""
    if not units or not units[-1].is_compatible_with("mm"):
        return 1.0
    return float((1 * units[-1]).to("mm").magnitude)


def lengths(units: Sequence[Any] | None) -> tuple[Any, ...]:
    """The units of the axes S, A, R among those of a viewer's axes; mm, where they are no lengths."""
    last = tuple(units or ())[-3:]
    if len(last) == 3 and all(unit.is_compatible_with("mm") for unit in last):
        return last
    return tuple(pint.get_application_registry().Unit(name) for name in UNITS)


def mm_per_unit(viewer: Viewer) -> float:
    """Mm per unit of a viewer's positions: of its sliders, its camera and its mouse."""
    return mm_per(viewer.dims.units)


def shown_axes(viewer: Viewer) -> tuple[int, ...]:
    """Which of the axes S, A, R (0, 1, 2) are on the canvas, in their order there."""
    further = viewer.dims.ndim - 3
    return tuple(axis - further for axis in viewer.dims.displayed if axis >= further)


def point_of(viewer: Viewer) -> NDArray[np.float64]:
    """Where the sliders stand, mm along S, A, R."""
    return np.asarray(viewer.dims.point[-3:], dtype=np.float64) * mm_per_unit(viewer)


def go_to(viewer: Viewer, place: ArrayLike) -> None:
    """Move the sliders to a place, mm along S, A, R; those of further axes stay."""
    there = [float(v) for v in np.asarray(place) / mm_per_unit(viewer)]
    point = viewer.dims.point
    viewer.dims.point = (*point[:-3], *there[-len(point) :])
