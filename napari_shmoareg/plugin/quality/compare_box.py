"""The controls of a comparison: mode, stage and slider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QWidget
from superqt import QLabeledSlider
from superqt.utils import signals_blocked

from napari_shmoareg.geometry.volume import looks_like_ct
from napari_shmoareg.plugin.controls.forms import combo_of, narrowed
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.layers import contrast
from napari_shmoareg.plugin.quality.compare import Comparer
from napari_shmoareg.plugin.quality.composites import Composite
from napari_shmoareg.plugin.registrations import open_registrations
from napari_shmoareg.plugin.showing import layer_of

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.registration.register import Registration


NO_COMPARISON = "as they are"
STAGES = {
    "after": "moving, warped",
    "affine": "moving, after the affine",
    "before": "moving, as filed",
}
AUTOMATIC = "automatic"
# HU; the usual ones of radiology, as lowest and highest value
CT_WINDOWS = {
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
    "brain": (0.0, 80.0),
}
UPDATE_INTERVAL = 30  # ms between updates while the slider moves


class Slider(NamedTuple):
    """A slider: text, minimum, maximum, initial value, and the amount per step."""

    text: str
    low: int
    high: int
    first: int
    unit: float = 0.01


class Mode(NamedTuple):
    """A comparison mode: text, tooltip and optional slider."""

    text: str
    tip: str
    slider: Slider | None = None


MODES = {
    NO_COMPARISON: Mode("No comparison", "The layers unchanged."),
    "blend": Mode(
        "Blend", "The moving image over the fixed one.", Slider("Opacity, %", 0, 100, 50)
    ),
    "two colours": Mode(
        "Two colours",
        "Fixed in green, moving in magenta; equal brightness gives grey.",
        Slider("Balance, %", 0, 100, 50),
    ),
    "checkerboard": Mode(
        "Checkerboard",
        "Alternating tiles of the two images: edges should continue across tiles.",
        Slider("Tile, mm", 2, 100, 20, 1.0),
    ),
    "swipe": Mode(
        "Swipe",
        "Fixed left of the edge, moving right of it. Drag the edge in the image or the slider.",
        Slider("Edge at, %", 0, 100, 50),
    ),
    "difference": Mode(
        "Absolute difference",
        "Of intensities from 0 to 1, on the same scale before and after. Not meaningful for"
        " different contrasts (CT and MR).",
    ),
    "side by side": Mode(
        "Side by side", "Fixed, moving and warped in a row, panned and zoomed together."
    ),
}


class CompareBox(QWidget):
    """Controls that compare the images of a registration and restore the viewer afterwards."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._number: int | None = None
        self._values = {name: mode.slider.first for name, mode in MODES.items() if mode.slider}
        self.comparer = Comparer(viewer, self)
        self.comparer.working.connect(self._explain)
        self.comparer.shown.connect(self._scale)
        self.comparer.ended.connect(lambda: self.compare(NO_COMPARISON))
        self.comparer.dragged.connect(lambda amount: self.slider.setValue(round(100 * amount)))
        self._build()
        self._timer = single_shot(
            self, UPDATE_INTERVAL, lambda: self.comparer.set_amount(self.amount)
        )

    @property
    def amount(self) -> float:
        """The value of the slider: a fraction, or mm."""
        mode = MODES[self.mode.currentData()]
        return self.slider.value() * mode.slider.unit if mode.slider else 0.0

    def compare(self, mode: str, stage: str | None = None) -> None:
        """Select a mode, and optionally the stage ("before", "affine" or "after")."""
        if stage is not None:
            self.stage.setCurrentIndex(self.stage.findData(stage))
        self.mode.setCurrentIndex(self.mode.findData(mode))

    def set_registration(self, number: int | None) -> None:
        """Compare the images of another registration, or of None."""
        if number != self._number:
            self._number = number
            self.setEnabled(number is not None)
            self._form.setRowVisible(self.ct_window, self._is_ct())
            self.ct_window.setCurrentText(AUTOMATIC)
            self._on_choice()

    def _build(self) -> None:
        form = self._form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.setContentsMargins(0, 0, 0, 0)
        self.mode, self.stage = QComboBox(), QComboBox()
        narrowed(self.mode, self.stage, length=12)
        for name, mode in MODES.items():
            self.mode.addItem(mode.text, name)
            self.mode.setItemData(self.mode.count() - 1, mode.tip, Qt.ItemDataRole.ToolTipRole)
        for name, text in STAGES.items():
            self.stage.addItem(text, name)
        self.stage.setToolTip(
            "The image to compare with the fixed one. 'As filed': as positioned by its file."
        )
        self.ct_window = combo_of(AUTOMATIC, *CT_WINDOWS)
        self.ct_window.setToolTip(
            "Contrast limits of the images, for CT in Hounsfield units: "
            + ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in CT_WINDOWS.items())
        )
        self.slider_label, self.slider = QLabel(), QLabeledSlider(Qt.Orientation.Horizontal)
        self.note = QLabel()
        self.note.setWordWrap(True)
        form.addRow("CT window", self.ct_window)
        form.setRowVisible(self.ct_window, False)
        form.addRow("Show", self.mode)
        form.addRow("Fixed with", self.stage)
        form.addRow(self.slider_label, self.slider)
        # not napari's colour bar: 0.9.2 crashes at the next screenshot after its layer was removed
        self.ramp = Ramp()
        form.addRow(self.note)
        form.addRow(self.ramp)
        self.ct_window.activated.connect(lambda _: self._set_window())
        self.mode.currentIndexChanged.connect(self._on_choice)
        self.stage.currentIndexChanged.connect(self._on_choice)
        self.slider.valueChanged.connect(self._on_slider)
        self.setEnabled(False)
        self._explain()

    def _registration(self) -> Registration | None:
        viewer = self.comparer.viewer
        return None if viewer is None else open_registrations(viewer).get(self._number or 0)

    def _is_ct(self) -> bool:
        """Whether both images are in Hounsfield units."""
        registration = self._registration()
        if registration is None:
            return False
        return all(map(looks_like_ct, (registration.pair.fixed, registration.pair.moving)))

    def _set_window(self) -> None:
        """Set the contrast limits of all images of the registration."""
        viewer, registration = self.comparer.viewer, self._registration()
        if viewer is None or registration is None or self._number is None:
            return
        automatic = contrast(registration.pair.fixed, registration.pair.moving)
        limits = CT_WINDOWS.get(self.ct_window.currentText())
        for name in ("fixed", "moving", "after"):
            layer = layer_of(viewer, registration, self._number, name)
            if layer is not None:
                layer.contrast_limits = limits or automatic[name != "fixed"]
        self.comparer.follow_window()

    def _on_choice(self) -> None:
        """Apply another mode, stage or registration."""
        name = self.mode.currentData()
        slider = MODES[name].slider
        if slider is not None:
            with signals_blocked(self.slider):
                self.slider.setRange(slider.low, slider.high)
                self.slider.setValue(self._values[name])
        if self._number is None or name == NO_COMPARISON:
            self.comparer.stop()
        else:
            self.comparer.request(self._number, name, self.stage.currentData(), self.amount)
        self._explain()

    def _explain(self) -> None:
        """Show the controls of the mode with their explanation."""
        name = self.mode.currentData()
        mode = MODES[name]
        self.mode.setToolTip(mode.tip)
        self.note.setText("Computing …" if self.comparer.busy else mode.tip)
        if mode.slider is not None:
            self.slider_label.setText(mode.slider.text)
            self.slider.setToolTip(mode.tip)
        self._form.setRowVisible(self.stage, name not in (NO_COMPARISON, "side by side"))
        self._form.setRowVisible(self.slider, mode.slider is not None)
        self._form.setRowVisible(self.ramp, name == "difference")
        self._form.setRowVisible(self.note, name != NO_COMPARISON)

    def _scale(self) -> None:
        """Show the colour ramp of a difference, and follow its changes."""
        shown = self.comparer.current
        if isinstance(shown, Composite) and shown.prepared.mode == "difference":
            self._show_colours(shown.layer)
            for emitter in (shown.layer.events.contrast_limits, shown.layer.events.colormap):
                emitter.connect(self._colours_changed)

    def _colours_changed(self, event: Any) -> None:
        self._show_colours(event.source)

    def _show_colours(self, layer: Image) -> None:
        marks = [f"{limit:.3g}" for limit in layer.contrast_limits]
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)

    def _on_slider(self, value: int) -> None:
        self._values[self.mode.currentData()] = value
        if not self._timer.isActive():
            self._timer.start()
