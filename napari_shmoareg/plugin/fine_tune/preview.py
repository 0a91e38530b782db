"""A validation pair in the viewer, which is registered anew as the network learns."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.tasks import Task, single_shot
from napari_shmoareg.plugin.placement import KEY, layer_options, tag
from napari_shmoareg.plugin.viewer import attend

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.plugin.layers import LayerData


IMAGES = ("fixed", "moving", "warped")  # bottom first
LABELS = ("fixed_labels", "warped_labels")
NUMBER = "validation"  # of these layers: no registration's, so that no panel takes them for inputs
LAYER_INTERVAL = 100  # ms between two layers, for the window to go on
Read = tuple[dict[str, Any], "list[LayerData]"]


class Preview(QObject):
    """Keeps layers of the pair in a viewer, the same ones for as long as they are open.

    Parameters
    ----------
    parent : QObject
    viewer : Viewer

    Attributes
    ----------
    told : Signal(str)
        Which pair at which step, with its Dice; or why it cannot be shown.
    """

    told = Signal(str)

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
        """Show the pair of an event "preview", if that is not shown yet."""
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
        """Show what comes next even if it was shown before."""
        self._shown = ("", -1)

    def stop(self) -> None:
        """Show nothing more."""
        self._task.drop()
        self._queue = []

    def _on_progress(self, found: Read) -> None:
        self._about, self._queue = found
        self._next.start()

    def _put(self) -> None:
        """Put in one layer at a turn, so that the window goes on in between."""
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
    """Add a layer, or give the one that is there its new data: the viewer goes on looking where it
    looks.
    """
    from napari.layers import Layer

    data, options, kind = layer_data
    role = options["metadata"][KEY]["role"]
    there = next(
        (la for la in viewer.layers if tag(la, "number") == NUMBER and tag(la, "role") == role),
        None,
    )
    if there is not None and _fits(there, data, options):
        there.metadata = {**there.metadata, KEY: options["metadata"][KEY]}
        if not np.array_equal(there.data, data):
            there.data = data
        there.name = options["name"]
        return
    if there is not None:
        viewer.layers.remove(there)
    attend(viewer)
    before = viewer.layers.selection.active
    viewer.add_layer(Layer.create(data, options, kind))
    if before is not None and before in viewer.layers:
        viewer.layers.selection.active = before


def read(folder: Path) -> Read:
    """A preview's folder as what it says and layers, fixed image first.

    Raises
    ------
    InputError, OSError
        If something cannot be read.
    """
    from napari_shmoareg.io import read_image
    from napari_shmoareg.io.untrusted import read_object

    about = read_object(folder / "preview.json", "what a preview shows")
    if not isinstance(about.get("step"), int) or not isinstance(
        about.get("dice"), int | float | None
    ):
        raise InputError(
            f"{folder / 'preview.json'} is damaged: a 'step', and a 'dice' or null, were expected."
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
    """Whether new data can take the place of a layer's own."""
    same = np.allclose(layer.scale, options["scale"]) and np.allclose(
        layer.translate, options["translate"]
    )
    return same and layer.data.shape == data.shape and layer.data.dtype == data.dtype
