"""Setting landmarks by clicking: a point in the fixed image, then the same place in the moving one."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error
from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QPushButton

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.landmarks.layers import add_landmark_layers, centre_on, points_of
from napari_shmoareg.widgets.placement import to_viewer
from napari_shmoareg.widgets.quality.looks import Looks
from napari_shmoareg.widgets.scenes import layer_in_role
from napari_shmoareg.widgets.showing import layer_of
from napari_shmoareg.widgets.units import go_to

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.analysis.scene import Scene
    from napari_shmoareg.widgets.registration_picker import RegistrationPicker


TIP = (
    "Set pairs by clicking: a place in the fixed image, then the same one in the moving image. The image to click in "
    "is shown by itself. Points can be dragged afterwards."
)


class Adding:
    """Points are being added: shows the image that the next one belongs to, and listens for the click.

    The side with fewer points is next, so that pairs come to be whole whatever was deleted.

    Parameters
    ----------
    viewer : Viewer
    number : int or None
        Of the registration that is looked at, if there is one.
    scene : Scene or None
    """

    def __init__(self, viewer: Viewer, number: int | None, scene: Scene | None) -> None:
        self._viewer = weakref.ref(viewer)
        images = {side: _image(viewer, number, scene, side) for side in ("fixed", "moving")}
        for side, image in images.items():
            if image is None and scene is not None:
                raise InputError(
                    f"The {side} image of #{number} ({getattr(scene.pair, side).name}) is not open. Open it, or choose "
                    "another registration above."
                )
            if image is None:
                raise InputError(
                    f"There is no {side} image among the layers. Open the pair, and pick it in the Register panel."
                )
        self._images = {side: weakref.ref(image) for side, image in images.items() if image is not None}
        self._affine = None if scene is None else scene.affine
        self._layers = add_landmark_layers(viewer)
        self._looks = Looks(viewer)
        self.side = ""
        self.advance()

    @property
    def hint(self) -> str:
        """What to do next."""
        count = len(self._layers[self.side].data) + 1
        return f"Pair {count}: click the place in the {self.side} image, which is shown now. 'Done' ends it."

    def advance(self) -> None:
        """Turn to the image that the next point belongs to."""
        viewer = self._viewer()
        if viewer is None:
            return
        fixed, moving = (points_of(self._layers[side]) for side in ("fixed", "moving"))
        before, self.side = self.side, "fixed" if len(fixed) <= len(moving) else "moving"
        if self.side == "moving" and self._affine is not None:
            # Ours: only the affine leads the eye to the place, so that the deformation is judged unseen.
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
                layer.mode = "pan_zoom"  # last: napari gives a layer that is shown again the mode it had


def _image(viewer: Viewer, number: int | None, scene: Scene | None, side: str) -> Layer | None:
    """The layer that shows the fixed or the moving image."""
    if scene is None or number is None:
        return layer_in_role(viewer, side)
    return layer_of(viewer, scene, number, side)


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
        self._next = QTimer(self)
        self._next.setSingleShot(True)
        self._next.timeout.connect(self._advance)
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
            self._adding = Adding(viewer, self._picker.number, self._picker.scene)
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
            self._next.start(0)

    def _advance(self) -> None:
        if self._adding is not None:
            self._adding.advance()
            self._say()

    def _say(self) -> None:
        self.setText("Add pairs" if self._adding is None else "Done")
        self.said.emit("" if self._adding is None else self._adding.hint)
