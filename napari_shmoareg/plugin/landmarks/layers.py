"""Landmark pairs as two Points layers: setting, numbering and distances."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QPushButton

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.placement import (
    AXES,
    COLOURS,
    KEY,
    centre_on,
    follow_placement,
    go_to,
    landmarks_of,
    lengths,
    mm_per,
    tag,
    to_viewer,
)
from napari_shmoareg.plugin.registrations import layer_in_role
from napari_shmoareg.plugin.showing import layer_of
from napari_shmoareg.plugin.viewer_state import ViewerState

if TYPE_CHECKING:
    from napari import Viewer
    from napari.components import LayerList
    from napari.layers import Layer, Points

    from napari_shmoareg.plugin.controls.pickers import RegistrationPicker
    from napari_shmoareg.registration.register import Registration


SIDES = ("fixed", "moving")
SYMBOLS = {"fixed": "disc", "moving": "cross"}
SIZE = 1 / 90  # diameter of a point, as a fraction of the displayed extent


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of landmark pairs, mm, (n,) each; NaN without a registration.

    Attributes
    ----------
    before : array
        From the fixed to the moving point.
    affine, after : array
        From the fixed point, mapped by the affine or the whole registration, to the moving point:
        the target registration error.
    """

    before: NDArray[np.float64]
    affine: NDArray[np.float64]
    after: NDArray[np.float64]


def measure(fixed: ArrayLike, moving: ArrayLike, registration: Registration | None) -> Distances:
    """Measure pairs of points, both (n, 3), mm RAS."""
    x, y = np.reshape(fixed, (-1, 3)).astype(float), np.reshape(moving, (-1, 3)).astype(float)
    before = np.linalg.norm(x - y, axis=1)
    if registration is None or not len(x):
        unknown = np.full(len(x), np.nan)
        return Distances(before, unknown, unknown)
    from napari_shmoareg.geometry import Transform

    return Distances(
        before, Transform(registration.affine).distance(x, y), registration.transform.distance(x, y)
    )


def landmark_layer(viewer: Viewer, side: str) -> Points | None:
    """Return the landmark layer of the "fixed" or the "moving" image."""
    return next(
        (layer for layer in viewer.layers if tag(layer, "role") == f"landmarks_{side}"), None
    )


def add_landmark_layers(viewer: Viewer) -> dict[str, Points]:
    """Return the two landmark layers, adding missing ones."""
    from napari.layers import Points

    found = {}
    step, shown = _step_and_size(viewer)
    for side in SIDES:
        layer = landmark_layer(viewer, side)
        if layer is None:
            layer = Points(
                np.zeros((0, 3)),
                ndim=3,
                name=f"landmarks ({side})",
                size=SIZE * shown / step[-1],
                scale=step,
                symbol=SYMBOLS[side],
                border_color="black",
                border_width=0.05,
                features={"pair": np.zeros(0, dtype=int)},
                text={"string": "{pair}", "size": 10, "color": "white", "anchor": "upper_left"},
                units=lengths(viewer.layers.units),
                axis_labels=AXES,
                metadata={KEY: {"role": f"landmarks_{side}"}},
            )
            viewer.add_layer(layer)
        found[side] = layer
    follow_placement(found["moving"], layer_in_role(viewer, "moving"))
    if _follow_units not in viewer.layers.events.inserted.callbacks:
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(_follow_units, position="last")
    return found


def set_points(layer: Points, points: ArrayLike) -> None:
    """Replace the points of a layer, (n, 3) mm RAS as in `landmarks_of`."""
    physical = to_viewer(np.reshape(points, (-1, 3))) / mm_per(layer.units)
    layer.selected_data = set()
    layer.data = (physical - layer.translate) / layer.scale
    number_points(layer)


def number_points(layer: Points) -> None:
    """Number the points in order, and colour them by pair."""
    numbers = np.arange(1, len(layer.data) + 1)
    if list(layer.features.get("pair", ())) == list(numbers):
        return
    layer.features = {"pair": numbers}
    if len(numbers):
        layer.face_color = [COLOURS[(n - 1) % len(COLOURS)] for n in numbers]


def remove_unpaired(viewer: Viewer) -> int:
    """Remove points whose partner was deleted without a panel; return how many.

    They are recognised by gaps in the numbers of the other layer.
    """
    layers = [
        layer for layer in (landmark_layer(viewer, side) for side in SIDES) if layer is not None
    ]
    if len(layers) < len(SIDES):
        return 0
    numbers = [_increasing_numbers(layer) for layer in layers]
    removed = 0
    for layer, own, others in zip(layers, numbers, numbers[::-1], strict=True):
        unpaired = [
            n
            for n, number in enumerate(own)
            if number not in others and number < max(others, default=0)
        ]
        remove_points(layer, unpaired)
        removed += len(unpaired)
    return removed


def remove_points(layer: Points, indices: list[int]) -> None:
    """Delete points and renumber the others."""
    if indices:
        layer.selected_data = set()
        layer.remove(indices)
    number_points(layer)


def _follow_units(event: Any) -> None:
    """Convert the landmark layers to the units of the others, as napari does not convert clicks."""
    layers: LayerList = event.source
    landmarks = [layer for layer in layers if str(tag(layer, "role")).startswith("landmarks_")]
    others = [layer for layer in layers if layer not in landmarks]
    units = lengths(layers.get_extent(others).units if others else None)
    for layer in landmarks:
        _convert_units(layer, units)
        if tag(layer, "role") == "landmarks_moving":
            moving = [other for other in others if tag(other, "role") == "moving"]
            follow_placement(layer, moving[-1] if moving else None)


def _convert_units(layer: Points, units: Any) -> None:
    """Convert the scale and position of a layer to other units."""
    ratio = mm_per(layer.units) / mm_per(units)
    if ratio == 1:
        return
    scale, translate = np.asarray(layer.scale) * ratio, np.asarray(layer.translate) * ratio
    # in this order the extent is temporarily too large, never too small, so the sliders stay
    if ratio < 1:
        layer.units = units
    layer.scale, layer.translate = scale, translate
    layer.units = units


def _increasing_numbers(layer: Points) -> list[float]:
    """Return the increasing numbers of a layer's points, without points added later."""
    increasing: list[float] = []
    for number in np.asarray(layer.features.get("pair", ()), dtype=float):
        if not number > (increasing[-1] if increasing else 0):
            break
        increasing.append(float(number))
    return increasing


def _step_and_size(viewer: Viewer) -> tuple[tuple[float, ...], float]:
    """Return the step and extent of the layers, mm; finer steps would refine the sliders."""
    if not len(viewer.layers):
        return (1.0, 1.0, 1.0), 300.0
    low, high = viewer.layers.extent.world[:, -3:]
    return tuple(float(v) for v in viewer.layers.extent.step[-3:]), float(np.nanmax(high - low))


TIP = (
    "Set pairs by clicking a location in the fixed image, then the corresponding one in the moving"
    " image. Only the image to click in is shown. Points can be dragged afterwards."
)


class PairPlacement:
    """Lets the user add points: shows the image of the next point and waits for the click.

    The image with fewer points is next, so that pairs are completed even after deletions.

    Parameters
    ----------
    viewer : Viewer
    number : int or None
        Number of the picked registration.
    registration : Registration or None
    """

    def __init__(
        self, viewer: Viewer, number: int | None, registration: Registration | None
    ) -> None:
        self._viewer = weakref.ref(viewer)
        images = {side: _image(viewer, number, registration, side) for side in ("fixed", "moving")}
        for side, image in images.items():
            if image is None and registration is not None:
                raise InputError(
                    f"The {side} image of #{number} ({getattr(registration.pair, side).name}) is"
                    " not open. Open it, or choose another registration above."
                )
            if image is None:
                raise InputError(
                    f"There is no {side} image among the layers. Open the pair and pick it in the"
                    " Register panel."
                )
        self._images = {
            side: weakref.ref(image) for side, image in images.items() if image is not None
        }
        self._affine = None if registration is None else registration.affine
        follow_placement(add_landmark_layers(viewer)["moving"], images["moving"])
        self._layers = add_landmark_layers(viewer)
        self._saved_state = ViewerState(viewer)
        self.side = ""
        self.advance()

    @property
    def hint(self) -> str:
        """Instructions for the next point."""
        count = len(self._layers[self.side].data) + 1
        return (
            f"Pair {count}: click the location in the {self.side} image, which is shown. Press"
            " 'Done' to finish."
        )

    def advance(self) -> None:
        """Show the image of the next point."""
        viewer = self._viewer()
        if viewer is None:
            return
        fixed, moving = (landmarks_of(self._layers[side]) for side in ("fixed", "moving"))
        follow_placement(self._layers["moving"], self._images["moving"]())
        before, self.side = self.side, "fixed" if len(fixed) <= len(moving) else "moving"
        if self.side == "moving" and self._affine is not None:
            # Ours: only the affine suggests the location, so that the points are independent
            # of the deformation.
            guess = self._affine[:3, :3] @ fixed[len(moving)] + self._affine[:3, 3]
            affine = self._layers["moving"].affine.affine_matrix
            unit = mm_per(self._layers["moving"].units)
            go_to(viewer, affine[:3, :3] @ to_viewer(guess) + affine[:3, 3] * unit)
        elif before == "moving":
            centre_on(viewer, fixed[len(fixed) - 1])
        shown = self._images[self.side]()
        for layer in viewer.layers:
            if layer._type_string in ("image", "labels"):
                layer.visible = layer is shown
        for side, layer in self._layers.items():
            layer.visible = side == self.side
        active = self._layers[self.side]
        viewer.layers.selection.active = active
        active.selected_data = set()
        active.mode = "add"

    def end(self) -> None:
        """Restore the layers."""
        viewer = self._viewer()
        if viewer is None:
            return
        self._saved_state.restore(viewer)
        for layer in self._layers.values():
            if layer in viewer.layers:
                layer.visible = True
                # last, because napari restores the mode of a layer when it is shown
                layer.mode = "pan_zoom"


def _image(
    viewer: Viewer, number: int | None, registration: Registration | None, side: str
) -> Layer | None:
    """Return the layer of the fixed or the moving image."""
    if registration is None or number is None:
        return layer_in_role(viewer, side)
    return layer_of(viewer, registration, number, side)


class AddButton(QPushButton):
    """A button that starts and ends adding pairs for the picked registration."""

    hint_changed = Signal(str)  # instructions; empty at the end

    def __init__(self, viewer: Viewer, picker: RegistrationPicker) -> None:
        super().__init__("Add pairs")
        self._viewer, self._picker = weakref.ref(viewer), picker
        self._adding: PairPlacement | None = None
        self._next = single_shot(self, 0, self._advance)
        self.setToolTip(TIP)
        self.clicked.connect(self.toggle_adding)

    @property
    def adding(self) -> bool:
        """Whether pairs are being added."""
        return self._adding is not None

    def toggle_adding(self) -> None:
        """Start or end adding pairs."""
        viewer = self._viewer()
        if self._adding is not None or viewer is None:
            self.stop()
            return
        try:
            self._adding = PairPlacement(viewer, self._picker.number, self._picker.registration)
        except InputError as error:
            show_error(str(error))
        self._show_hint()

    def stop(self) -> None:
        """End adding pairs, and restore the layers."""
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.end()
        self._show_hint()

    def points_changed(self) -> None:
        """Continue with the next point, after napari has processed the last one."""
        if self._adding is not None:
            self._next.start()

    def _advance(self) -> None:
        if self._adding is not None:
            self._adding.advance()
            self._show_hint()

    def _show_hint(self) -> None:
        self.setText("Add pairs" if self._adding is None else "Done")
        self.hint_changed.emit("" if self._adding is None else self._adding.hint)
