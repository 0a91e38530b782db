"""Carries any open layer through a registration, in either direction."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtWidgets import QFormLayout, QLabel, QPushButton, QWidget

from napari_shmoareg.errors import NoOverlapError
from napari_shmoareg.plugin.controls.forms import combo_of, fill, wrapped
from napari_shmoareg.plugin.controls.pickers import LayerPicker, rejection
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task
from napari_shmoareg.plugin.placement import (
    AXES,
    KEY,
    UNITS,
    layer_options,
    placement_of,
    points_of,
    to_viewer,
    volume_before,
    volume_of,
)
from napari_shmoareg.plugin.registrations import open_registrations
from napari_shmoareg.plugin.showing import layer_of

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import Grid, Volume
    from napari_shmoareg.registration.register import Registration


KINDS = ("image", "labels", "points")
TO_FIXED, TO_MOVING = "moving to fixed", "fixed to moving"
TIP = (
    "Transform another layer as this registration transforms its moving image: a second contrast, a"
    " segmentation, landmarks. Images are interpolated once, labels keep their values."
)
PROBED = (
    12  # points per axis of the target grid that are looked up to see whether anything overlaps
)
Map = Callable[[NDArray[np.float64]], NDArray[np.float64]]
LayerData = tuple[NDArray, dict[str, Any], str]


def carry_layer(
    layer: Layer,
    registration: Registration,
    number: int,
    *,
    to_moving: bool = False,
    placement: NDArray[np.float64] | None = None,
) -> LayerData:
    """Carry a layer from the space of the moving image to that of the fixed one, or back.

    Parameters
    ----------
    layer : Image, Labels or Points
        In the space of the moving image; with `to_moving` of the fixed one.
    registration : Registration
    number : int
        Number of the registration in its viewer.
    to_moving : bool
    placement : (4, 4) array or None
        Where the moving image was moved in the viewer (`placement_of`): what belongs to it lies
        there too, whereas the transform refers to the world of its file.

    Returns
    -------
    data, options, type
        A layer: on the grid of the fixed (moving) image, or points.

    Raises
    ------
    InputError
        If it is no 3D volume of one channel.
    NoOverlapError
        If nothing of it would be left.
    """
    from napari_shmoareg.geometry import apply_affine, warp_volume

    transform, pair = registration.transform, registration.pair
    name = f"#{number} {layer.name}, {TO_MOVING if to_moving else TO_FIXED}"
    about: dict[str, Any] = {"registration": registration, "number": number, "role": "carried"}
    moved_by = np.eye(4) if placement is None else placement
    if layer._type_string == "points":
        points = points_of(layer)
        if to_moving:
            moved = apply_affine(moved_by, transform.map_points(points))
        else:
            moved = transform.inverse_points(apply_affine(np.linalg.inv(moved_by), points))
        options: dict[str, Any] = {"name": name, "units": UNITS, "axis_labels": AXES, "ndim": 3}
        options |= {"features": layer.features, "symbol": "cross", "metadata": {KEY: about}}
        target = (pair.moving if to_moving else pair.fixed).grid
        options["size"] = float(np.ptp(target.corners(), axis=0).max()) / 40
        return to_viewer(moved), options, "points"
    volume = volume_of(layer) if to_moving else volume_before(layer, placement)
    target = (pair.moving if to_moving else pair.fixed).grid
    ways = transform.map_points, transform.inverse_points  # from fixed to moving, and back
    _check_overlap(volume, target, ways[::-1] if to_moving else ways, layer.name, to_moving)
    carried = warp_volume(volume, target, transform, inverse=to_moving)
    data, options = layer_options(carried, **about)
    options["name"] = name
    if to_moving and placement is not None:
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = placement[2::-1, 2::-1], placement[2::-1, 3]
        options["affine"] = affine
    if volume.is_labels:
        return data, options | {"opacity": 0.8, "features": layer.features}, "labels"
    kept = {"colormap": layer.colormap.name, "contrast_limits": tuple(layer.contrast_limits)}
    return data, options | kept, "image"


def _check_overlap(
    volume: Volume, target: Grid, ways: tuple[Map, Map], name: str, to_moving: bool
) -> None:
    """Reject a volume that no point of the target would show; `ways` map from the target to the
    volume and back.
    """
    from napari_shmoareg.geometry import inside

    if not any(
        inside(there, way(_lattice(here))).any()
        for here, there, way in zip((target, volume.grid), (volume.grid, target), ways, strict=True)
    ):
        here, other = ("fixed", TO_FIXED) if to_moving else ("moving", TO_MOVING)
        raise NoOverlapError(
            f"Nothing of '{name}' would be left: it does not lie where the {here} image of the"
            f" registration lies. If it belongs to the other image, choose '{other}'."
        )


def _lattice(grid: Grid) -> NDArray[np.float64]:
    """Points (n, n, n, 3) spread over a grid, mm RAS."""
    steps = [np.linspace(0, n - 1, min(n, PROBED)) for n in grid.shape]
    return grid.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), -1))


class ApplyBox(QWidget):
    """Pickers of a layer and a direction, and the button that applies the transform."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer, self._number = weakref.ref(viewer), 0
        self.layer = LayerPicker("(pick a layer)")
        self.direction = combo_of()
        fill(self.direction, {False: TO_FIXED, True: TO_MOVING})
        self.direction.setToolTip("From the space of which image to that of which.")
        self.button = QPushButton("Apply")
        self.button.setToolTip(TIP)
        self.text = QLabel(TIP)
        wrapped(self.text)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Layer", self.layer)
        form.addRow("Direction", self.direction)
        form.addRow(self.button)
        form.addRow(self.text)
        self.task = Task(self, "applying a transform")
        self.task.finished.connect(self._add)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(self._show)
        self.layer.currentIndexChanged.connect(lambda _: self._show())
        self.button.clicked.connect(self._on_clicked)

    def set_registration(self, number: int | None) -> None:
        """Use a registration of the viewer, by its number."""
        self._number = number or 0
        self.refresh()

    def refresh(self) -> None:
        """List the open layers, all but those that show maps."""
        viewer = self._viewer()
        if viewer is not None:
            layers = [
                layer
                for layer in viewer.layers
                if layer._type_string in KINDS
                and not (layer._type_string != "points" and rejection(layer))
            ]
            self.layer.offer(layers, self.layer.layer)
        self._show()

    def _on_clicked(self) -> None:
        if self.task.busy:
            self.task.cancel()
            return
        viewer, layer = self._viewer(), self.layer.layer
        registration = None if viewer is None else open_registrations(viewer).get(self._number)
        if viewer is None or layer is None or registration is None:
            return
        number, to_moving = self._number, bool(self.direction.currentData())
        moving = layer_of(viewer, registration, number, "moving")
        placement = None if moving is None else placement_of(moving)

        def work(report: Report) -> LayerData:
            report(f"transforming {layer.name}", 0.0)
            return carry_layer(
                layer, registration, number, to_moving=to_moving, placement=placement
            )

        self.task.start(work)
        self._show(f"Transforming {layer.name} …")

    def _add(self, data: LayerData) -> None:
        from napari_shmoareg.plugin.layers import add_layers

        viewer = self._viewer()
        if viewer is not None:
            add_layers(viewer, [data])
            self._show(f"Added '{data[1]['name']}'.")

    def _on_failed(self, text: str) -> None:
        self._show(text)
        show_error(text)

    def _show(self, text: str = "") -> None:
        self.text.setText(text or TIP)
        self.button.setText(CANCEL if self.task.busy else "Apply")
        self.button.setEnabled(self.task.busy or self.layer.layer is not None)
