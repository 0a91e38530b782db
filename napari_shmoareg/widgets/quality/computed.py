"""Checkerboard, swipe and difference in the viewer: one layer, computed from two images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_warning
from numpy.typing import ArrayLike
from psygnal import Signal

from napari_shmoareg.widgets.placement import AXES, KEY, UNITS
from napari_shmoareg.widgets.quality.comparing import Comparison
from napari_shmoareg.widgets.quality.composites import fill_checkerboard, fill_difference, fill_swipe, swipe_edge
from napari_shmoareg.widgets.quality.preparing import WORDS
from napari_shmoareg.widgets.units import ASIDE, mm_per_unit, shown_axes

if TYPE_CHECKING:
    from napari.layers import Image, Layer

DIFFERENCE_LIMITS = (0.0, 0.5)  # Ours: of intensities in [0, 1], the same before and after
NEAR = 8.0  # pixels of the screen from the edge of a swipe within which it can be taken


class Computed(Comparison):
    """Checkerboard, swipe or difference: one image, computed from the two."""

    dragged = Signal(float)  # where the mouse took the edge of a swipe, as an amount

    def show(self) -> None:
        """Add the layer."""
        from napari.layers import Image

        made, both = self.prepared, self.prepared.sides
        assert both is not None
        self._both = both
        self._edge: int | None = None
        word = f"|difference| {made.stage}" if made.mode == "difference" else f"{made.mode}, {WORDS[made.stage]}"
        self.layer = Image(
            np.zeros_like(both.fixed),
            name=f"#{made.number} {word}",
            scale=both.spacing,
            translate=both.origin,
            units=UNITS,
            axis_labels=AXES,
            contrast_limits=self._limits(),
            colormap="inferno" if made.mode == "difference" else "gray",
            metadata={KEY: {"scene": made.scene, "number": made.number, "role": "comparison", "stage": made.stage}},
        )
        self._fill()
        self._add(self.layer)
        self._only([self.layer], overlays=True)
        self.viewer.layers.selection.active = self.layer
        self._say_if_aside()
        for emitter in self._emitters():
            emitter.connect(self.follow)
        self.layer.mouse_drag_callbacks.append(self.drag)

    def end(self) -> None:
        """Remove the layer, and follow the viewer no more."""
        for emitter in self._emitters():
            emitter.disconnect(self.follow)
        super().end()

    def set_amount(self, amount: float) -> None:
        """Make other tiles, or move the edge."""
        super().set_amount(amount)
        self._fill()
        self.layer.refresh(extent=False)

    def follow(self, event: Any = None) -> None:
        """Compute anew for the axes that are shown now."""
        self._edge = None
        self.set_amount(self.amount)
        self._say_if_aside()

    def edge_at(self, position: ArrayLike) -> float:
        """The amount with which the edge of a swipe goes through a place of the viewer's world."""
        axis, rising = self._across()
        place = np.asarray(position) * mm_per_unit(self.viewer)  # a layer knows its own units only
        share = (self.layer.world_to_data(place)[axis] + 0.5) / self.layer.data.shape[axis]
        return float(np.clip(share if rising else 1 - share, 0, 1))

    def drag(self, layer: Image, event: Any) -> Any:
        """Take the edge of a swipe with the mouse."""
        if self.prepared.mode != "swipe" or self.viewer.dims.ndisplay != 2 or self._aside:
            return
        axis, _ = self._across()
        width = layer.data.shape[axis] * layer.scale[axis] / mm_per_unit(self.viewer)
        if abs(self.edge_at(event.position) - self.amount) * width * self.viewer.scene.camera.zoom > NEAR:
            return
        layer.mouse_pan = False
        yield
        while event.type == "mouse_move":
            self.dragged.emit(self.edge_at(event.position))
            yield
        layer.mouse_pan = True

    def _shown(self) -> list[Layer]:
        return [self.layer]

    def _emitters(self) -> list[Any]:
        viewer = self.viewer
        return [viewer.dims.events.order, viewer.dims.events.ndisplay, viewer.scene.camera.events.orientation]

    @property
    def _aside(self) -> bool:
        """Whether too few of the axes S, A, R are shown for tiles or an edge."""
        return self.prepared.mode != "difference" and len(shown_axes(self.viewer)) < 2

    def _say_if_aside(self) -> None:
        if self._aside:
            show_warning(f"The {self.prepared.mode} shows the fixed image alone: {ASIDE}")

    def _across(self) -> tuple[int, bool]:
        """The axis that runs across the screen, and whether it rises to the right."""
        return shown_axes(self.viewer)[-1], str(self.viewer.scene.camera.orientation[-1]) == "right"

    def _fill(self) -> None:
        out, mode = self.layer.data, self.prepared.mode
        if mode == "difference":
            fill_difference(out, self._both)
        elif self._aside:
            np.copyto(out, self._both.fixed)
        elif mode == "checkerboard":
            fill_checkerboard(out, self._both, self.amount, shown_axes(self.viewer))
        else:
            axis, rising = self._across()
            edge = swipe_edge(out.shape[axis], self.amount, rising)
            fill_swipe(out, self._both, edge, axis, rising, was=self._edge)
            self._edge = edge

    def _limits(self) -> tuple[float, float]:
        """Dark and bright: those that the fixed image is shown with."""
        if self.prepared.mode == "difference":
            return DIFFERENCE_LIMITS
        from napari_shmoareg.engine.intensity import Intensity

        fixed = self.images["fixed"]
        if fixed is None:
            return 0.0, 1.0
        low, high = Intensity.of(self.prepared.scene.pair.fixed).scale(np.array(fixed.contrast_limits))
        return (float(low), float(high)) if high > low else (0.0, 1.0)
