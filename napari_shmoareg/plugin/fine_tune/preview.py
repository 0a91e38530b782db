"""Layers of a validation pair, updated as the network trains."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.tasks import Task, single_shot
from napari_shmoareg.plugin.placement import KEY, layer_options, tag
from napari_shmoareg.plugin.viewer import set_up_viewer

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.plugin.layers import LayerData


IMAGES = ("fixed", "moving", "warped")  # bottom first
LABELS = ("fixed_labels", "warped_labels")
NUMBER = "validation"  # tag of these layers, so that no panel offers them as inputs
LAYER_INTERVAL = 100  # ms between adding two layers, to keep the window responsive
Read = tuple[dict[str, Any], "list[LayerData]"]


class Preview(QObject):
    """Shows the validation pair in a viewer and updates its layers.

    Attributes
    ----------
    message : Signal(str)
        The pair, step and Dice, or why the pair cannot be shown.
    """

    message = Signal(str)

    def __init__(self, parent: QObject, viewer: Viewer) -> None:
        super().__init__(parent)
        self._viewer = weakref.ref(viewer)
        self._shown: tuple[str, int] = ("", -1)
        self._about: dict[str, Any] = {}
        self._queue: list[LayerData] = []
        self._next = single_shot(self, LAYER_INTERVAL, self._put)
        self._task = Task(parent, "reading the validation pair")
        self._task.finished.connect(self._on_progress)
        self._task.failed.connect(self._fail)

    def show(self, preview: dict[str, Any]) -> None:
        """Show the pair of an event "preview", unless it is already shown."""
        if (
            not preview
            or self._task.busy
            or self._queue
            or (preview["folder"], preview["step"]) == self._shown
        ):
            return
        self._shown = preview["folder"], preview["step"]
        folder = Path(preview["folder"])
        self._task.start(lambda _: read(folder))

    def forget(self) -> None:
        """Show the next preview even if it was shown before."""
        self._shown = ("", -1)

    def stop(self) -> None:
        """Cancel what is still to be shown."""
        self._task.drop()
        self._queue = []

    def _on_progress(self, found: Read) -> None:
        self._about, self._queue = found
        self._next.start()

    def _put(self) -> None:
        """Add one layer per call, to keep the window responsive."""
        viewer = self._viewer()
        if viewer is None or not self._queue:
            return
        put(viewer, self._queue.pop(0))
        if self._queue:
            self._next.start()
        else:
            self.message.emit(summary(self._about))

    def _fail(self, text: str) -> None:
        self.forget()
        self.message.emit(f"The validation pair could not be read: {text}")


def put(viewer: Viewer, layer_data: LayerData) -> None:
    """Add a layer, or update the data of the existing one without moving the camera."""
    from napari.layers import Layer

    data, options, kind = layer_data
    role = options["metadata"][KEY]["role"]
    existing = next(
        (la for la in viewer.layers if tag(la, "number") == NUMBER and tag(la, "role") == role),
        None,
    )
    if existing is not None and _fits(existing, data, options):
        existing.metadata = {**existing.metadata, KEY: options["metadata"][KEY]}
        if not np.array_equal(existing.data, data):
            existing.data = data
        existing.name = options["name"]
        return
    if existing is not None:
        viewer.layers.remove(existing)
    set_up_viewer(viewer)
    before = viewer.layers.selection.active
    viewer.add_layer(Layer.create(data, options, kind))
    if before is not None and before in viewer.layers:
        viewer.layers.selection.active = before


def read(folder: Path) -> Read:
    """Read a preview's folder: its description and its layers, fixed image first."""
    from napari_shmoareg.io import read_image
    from napari_shmoareg.io.untrusted import read_object

    about = read_object(folder / "preview.json", "the description of a preview")
    if not isinstance(about.get("step"), int) or not isinstance(
        about.get("dice"), int | float | None
    ):
        raise InputError(
            f"{folder / 'preview.json'} is damaged: expected an integer 'step' and a numeric or"
            " null 'dice'. Wait for the next validation."
        )
    layers: list[LayerData] = []
    for name in (*IMAGES, *LABELS):
        if not (folder / f"{name}.nii.gz").is_file():
            continue
        volume = read_image(folder / f"{name}.nii.gz", labels=name in LABELS)
        data, options = layer_options(volume, role=f"preview_{name}", number=NUMBER)
        step = f", step {about['step']}" if name.startswith("warped") else ""
        options |= {
            "name": f"validation {name.replace('_', ' ')}{step}",
            "visible": name in ("fixed", "warped"),
        }
        if volume.is_labels:
            layers.append((data, options | {"opacity": 0.6}, "labels"))
        else:
            layers.append(
                (data, options | {"colormap": "gray", "contrast_limits": (0.0, 1.0)}, "image")
            )
    return about, layers


def summary(about: dict[str, Any]) -> str:
    """``sub-05 and sub-06 at step 300: Dice 0.712.``"""
    pair, dice = about.get("pair") or (), about.get("dice")
    names = " onto ".join(map(str, pair)) if isinstance(pair, list) else str(pair)
    return f"{names or 'The pair'} at step {about['step']}" + (
        "." if dice is None else f": Dice {dice:.3f}."
    )


def _fits(layer: Layer, data: np.ndarray, options: dict[str, Any]) -> bool:
    """Whether new data fits the geometry of an existing layer."""
    same = np.allclose(layer.scale, options["scale"]) and np.allclose(
        layer.translate, options["translate"]
    )
    return same and layer.data.shape == data.shape and layer.data.dtype == data.dtype
