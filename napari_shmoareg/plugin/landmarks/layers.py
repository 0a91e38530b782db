"""Landmarks as two Points layers, placed by clicking, and their distances."""

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
    go_to,
    lengths,
    mm_per,
    points_of,
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
SIZE = 1 / 90  # of what the viewer shows: a point's diameter


@dataclass(frozen=True, eq=False)
class Distances:
    """Between the two points of each pair, mm, (n,) each; NaN where there is no registration.

    Attributes
    ----------
    before : array
        As the images are filed: fixed point to moving point.
    affine, after : array
        From where the affine, or the whole registration, takes the fixed point, to the moving
        point: the target registration error.
    """

    before: NDArray[np.float64]
    affine: NDArray[np.float64]
    after: NDArray[np.float64]


def measure(fixed: ArrayLike, moving: ArrayLike, registration: Registration | None) -> Distances:
    """Distances of pairs of points, both (n, 3), mm RAS."""
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
    """The layer with the landmarks of the "fixed" or the "moving" image."""
    return next(
        (layer for layer in viewer.layers if tag(layer, "role") == f"landmarks_{side}"), None
    )


def add_landmark_layers(viewer: Viewer) -> dict[str, Points]:
    """The two layers; made where there are none."""
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
    if _follow_units not in viewer.layers.events.inserted.callbacks:
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(_follow_units, position="last")
    return found


def set_points(layer: Points, points: ArrayLike) -> None:
    """Replace a layer's points by others, (n, 3) mm RAS."""
    placed = [
        layer.world_to_data(p) for p in to_viewer(np.reshape(points, (-1, 3))) / mm_per(layer.units)
    ]
    layer.selected_data = set()
    layer.data = np.reshape(placed, (-1, 3))
    dress(layer)


def dress(layer: Points) -> None:
    """Number the points in their order, and give each pair its colour."""
    numbers = np.arange(1, len(layer.data) + 1)
    if list(layer.features.get("pair", ())) == list(numbers):
        return
    layer.features = {"pair": numbers}
    if len(numbers):
        layer.face_color = [COLOURS[(n - 1) % len(COLOURS)] for n in numbers]


def mend_pairs(viewer: Viewer) -> int:
    """Drop points whose partner was deleted while no panel looked on: a gap in the other layer's
    numbers tells.

    Returns
    -------
    int
        How many were dropped.
    """
    layers = [
        layer for layer in (landmark_layer(viewer, side) for side in SIDES) if layer is not None
    ]
    if len(layers) < len(SIDES):
        return 0
    numbers = [_rising_numbers(layer) for layer in layers]
    dropped = 0
    for layer, mine, others in zip(layers, numbers, numbers[::-1], strict=True):
        lone = [
            n
            for n, number in enumerate(mine)
            if number not in others and number < max(others, default=0)
        ]
        drop_points(layer, lone)
        dropped += len(lone)
    return dropped


def drop_points(layer: Points, indices: list[int]) -> None:
    """Delete points, and number the others anew."""
    if indices:
        layer.selected_data = set()
        layer.remove(indices)
    dress(layer)


def _follow_units(event: Any) -> None:
    """Give the landmarks the units of the other layers: napari takes a click for one in the layer's
    own.
    """
    layers: LayerList = event.source
    ours = [layer for layer in layers if str(tag(layer, "role")).startswith("landmarks_")]
    others = [layer for layer in layers if layer not in ours]
    wanted = lengths(layers.get_extent(others).units if others else None)
    for layer in ours:
        _in_units(layer, wanted)


def _in_units(layer: Points, units: Any) -> None:
    """Say a layer's place in other units."""
    ratio = mm_per(layer.units) / mm_per(units)
    if ratio == 1:
        return
    scale, translate = np.asarray(layer.scale) * ratio, np.asarray(layer.translate) * ratio
    # either way what is shown is for a moment too large, not too small, so that the sliders stay
    if ratio < 1:
        layer.units = units
    layer.scale, layer.translate = scale, translate
    layer.units = units


def _rising_numbers(layer: Points) -> list[float]:
    """The numbers of a layer's points as far as they rise; points added since then have others, or
    none.
    """
    rising: list[float] = []
    for number in np.asarray(layer.features.get("pair", ()), dtype=float):
        if not number > (rising[-1] if rising else 0):
            break
        rising.append(float(number))
    return rising


def _step_and_size(viewer: Viewer) -> tuple[tuple[float, ...], float]:
    """Voxels and extent of what is shown, mm: points on other steps would make the sliders' own
    finer.
    """
    if not len(viewer.layers):
        return (1.0, 1.0, 1.0), 300.0
    low, high = viewer.layers.extent.world[:, -3:]
    return tuple(float(v) for v in viewer.layers.extent.step[-3:]), float(np.nanmax(high - low))


TIP = (
    "Set pairs by clicking: a place in the fixed image, then the same one in the moving image. The"
    " image to click in is shown by itself. Points can be dragged afterwards."
)


class Adding:
    """Points are being added: shows the image that the next one belongs to, and listens for the
    click.

    The side with fewer points is next, so that pairs come to be whole whatever was deleted.

    Parameters
    ----------
    viewer : Viewer
    number : int or None
        Of the registration that is looked at, if there is one.
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
                    f"There is no {side} image among the layers. Open the pair, and pick it in the"
                    " Register panel."
                )
        self._images = {
            side: weakref.ref(image) for side, image in images.items() if image is not None
        }
        self._affine = None if registration is None else registration.affine
        self._layers = add_landmark_layers(viewer)
        self._looks = ViewerState(viewer)
        self.side = ""
        self.advance()

    @property
    def hint(self) -> str:
        """What to do next."""
        count = len(self._layers[self.side].data) + 1
        return (
            f"Pair {count}: click the place in the {self.side} image, which is shown now. 'Done'"
            " ends it."
        )

    def advance(self) -> None:
        """Turn to the image that the next point belongs to."""
        viewer = self._viewer()
        if viewer is None:
            return
        fixed, moving = (points_of(self._layers[side]) for side in ("fixed", "moving"))
        before, self.side = self.side, "fixed" if len(fixed) <= len(moving) else "moving"
        if self.side == "moving" and self._affine is not None:
            # Ours: only the affine leads the eye to the place, so that the deformation is judged
            # unseen.
            guess = self._affine[:3, :3] @ fixed[len(moving)] + self._affine[:3, 3]
            go_to(viewer, to_viewer(guess))
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
        """Show the layers as they were."""
        viewer = self._viewer()
        if viewer is None:
            return
        self._looks.put_back(viewer)
        for layer in self._layers.values():
            if layer in viewer.layers:
                layer.visible = True
                # last: napari gives a layer that is shown again the mode it had
                layer.mode = "pan_zoom"


def _image(
    viewer: Viewer, number: int | None, registration: Registration | None, side: str
) -> Layer | None:
    """The layer that shows the fixed or the moving image."""
    if registration is None or number is None:
        return layer_in_role(viewer, side)
    return layer_of(viewer, registration, number, side)


class AddButton(QPushButton):
    """Begins and ends the setting of points.

    Parameters
    ----------
    viewer : Viewer
    picker : RegistrationPicker
        Which registration is looked at.
    """

    said = Signal(str)  # what to do next; empty when the setting of points ended

    def __init__(self, viewer: Viewer, picker: RegistrationPicker) -> None:
        super().__init__("Add pairs")
        self._viewer, self._picker = weakref.ref(viewer), picker
        self._adding: Adding | None = None
        self._next = single_shot(self, 0, self._advance)
        self.setToolTip(TIP)
        self.clicked.connect(self.toggle_adding)

    @property
    def adding(self) -> bool:
        """Whether points are being set."""
        return self._adding is not None

    def toggle_adding(self) -> None:
        """Begin, or end."""
        viewer = self._viewer()
        if self._adding is not None or viewer is None:
            self.stop()
            return
        try:
            self._adding = Adding(viewer, self._picker.number, self._picker.registration)
        except InputError as error:
            show_error(str(error))
        self._say()

    def stop(self) -> None:
        """End it; the layers look as before."""
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.end()
        self._say()

    def points_changed(self) -> None:
        """Go on to the next point, once napari is done with the last one."""
        if self._adding is not None:
            self._next.start()

    def _advance(self) -> None:
        if self._adding is not None:
            self._adding.advance()
            self._say()

    def _say(self) -> None:
        self.setText("Add pairs" if self._adding is None else "Done")
        self.said.emit("" if self._adding is None else self._adding.hint)
