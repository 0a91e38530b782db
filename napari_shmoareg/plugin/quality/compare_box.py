"""The controls of a comparison: how, with what, and one slider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QWidget
from superqt import QLabeledSlider
from superqt.utils import signals_blocked

from napari_shmoareg.plugin.controls.forms import narrowed
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.tasks import single_shot
from napari_shmoareg.plugin.quality.compare import Comparer
from napari_shmoareg.plugin.quality.composites import Computed

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image


AS_THEY_ARE = "as they are"
STAGES = {
    "after": "moving, warped",
    "affine": "moving, after the affine",
    "before": "moving, as filed",
}
SOON = 30  # ms between two answers to a slider that is moved


class Slider(NamedTuple):
    """What the slider means: its text, least, most, first value, and the amount per step."""

    text: str
    low: int
    high: int
    first: int
    unit: float = 0.01


class Mode(NamedTuple):
    """One way to compare: what it is called, what it is for, and its slider."""

    text: str
    tip: str
    slider: Slider | None = None


MODES = {
    AS_THEY_ARE: Mode("Layers as they are", "No comparison: the layers as you left them."),
    "blend": Mode(
        "Blend", "The moving image laid over the fixed one.", Slider("Opacity, %", 0, 100, 50)
    ),
    "two colours": Mode(
        "Two colours",
        "Fixed in green, moving in magenta: where both are equally bright the sum is grey.",
        Slider("Balance, %", 0, 100, 50),
    ),
    "checkerboard": Mode(
        "Checkerboard",
        "Alternate tiles of either image: edges should run on from tile to tile.",
        Slider("Tile, mm", 2, 100, 20, 1.0),
    ),
    "swipe": Mode(
        "Swipe",
        "Fixed on the left of the edge, moving on its right. Drag the edge in the image, or the"
        " slider.",
        Slider("Edge at, %", 0, 100, 50),
    ),
    "difference": Mode(
        "Absolute difference",
        "Of intensities from 0 to 1, on one scale before and after. Means little where contrasts"
        " differ (CT and MR).",
    ),
    "side by side": Mode(
        "Side by side", "Fixed, moving and warped in one row, moved and zoomed together."
    ),
}


class CompareBox(QWidget):
    """Compares the images of one registration in its viewer, and puts everything back afterwards.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._number: int | None = None
        self._values = {name: mode.slider.first for name, mode in MODES.items() if mode.slider}
        self.comparer = Comparer(viewer, self)
        self.comparer.working.connect(self._explain)
        self.comparer.shown.connect(self._scale)
        self.comparer.left.connect(lambda: self.compare(AS_THEY_ARE))
        self.comparer.dragged.connect(lambda amount: self.slider.setValue(round(100 * amount)))
        self._build()
        self._soon = single_shot(self, SOON, lambda: self.comparer.set_amount(self.amount))

    @property
    def amount(self) -> float:
        """What the slider says: a share, or mm."""
        mode = MODES[self.mode.currentData()]
        return self.slider.value() * mode.slider.unit if mode.slider else 0.0

    def compare(self, mode: str, stage: str | None = None) -> None:
        """Choose how to compare, and which of "before", "affine" and "after" with the fixed
        image.
        """
        if stage is not None:
            self.stage.setCurrentIndex(self.stage.findData(stage))
        self.mode.setCurrentIndex(self.mode.findData(mode))

    def set_registration(self, number: int | None) -> None:
        """Compare the images of another registration; None if there is none."""
        if number != self._number:
            self._number = number
            self.setEnabled(number is not None)
            self._choose()

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
            "What is compared with the fixed image. 'As filed': where the files' headers place it."
        )
        self.slider_label, self.slider = QLabel(), QLabeledSlider(Qt.Orientation.Horizontal)
        self.note = QLabel()
        self.note.setWordWrap(True)
        form.addRow("Show", self.mode)
        form.addRow("Fixed with", self.stage)
        form.addRow(self.slider_label, self.slider)
        # Not napari's own colour bar: 0.9.2 crashes at the next screenshot after such a layer was
        # removed.
        self.ramp = Ramp()
        form.addRow(self.note)
        form.addRow(self.ramp)
        self.mode.currentIndexChanged.connect(self._choose)
        self.stage.currentIndexChanged.connect(self._choose)
        self.slider.valueChanged.connect(self._slide)
        self.setEnabled(False)
        self._explain()

    def _choose(self) -> None:
        """Another mode, image or registration was chosen."""
        name = self.mode.currentData()
        slider = MODES[name].slider
        if slider is not None:
            with signals_blocked(self.slider):
                self.slider.setRange(slider.low, slider.high)
                self.slider.setValue(self._values[name])
        if self._number is None or name == AS_THEY_ARE:
            self.comparer.leave()
        else:
            self.comparer.want(self._number, name, self.stage.currentData(), self.amount)
        self._explain()

    def _explain(self) -> None:
        """Show the controls that mean something now, and what they mean."""
        name = self.mode.currentData()
        mode = MODES[name]
        self.mode.setToolTip(mode.tip)
        self.note.setText("Computing …" if self.comparer.busy else mode.tip)
        if mode.slider is not None:
            self.slider_label.setText(mode.slider.text)
            self.slider.setToolTip(mode.tip)
        self._form.setRowVisible(self.stage, name not in (AS_THEY_ARE, "side by side"))
        self._form.setRowVisible(self.slider, mode.slider is not None)
        self._form.setRowVisible(self.ramp, name == "difference")
        self._form.setRowVisible(self.note, name != AS_THEY_ARE)

    def _scale(self) -> None:
        """Say what the colours of a difference mean, now and when they are changed by hand."""
        shown = self.comparer.current
        if isinstance(shown, Computed) and shown.prepared.mode == "difference":
            self._tell_colours(shown.layer)
            for emitter in (shown.layer.events.contrast_limits, shown.layer.events.colormap):
                emitter.connect(self._colours_changed)

    def _colours_changed(self, event: Any) -> None:
        self._tell_colours(event.source)

    def _tell_colours(self, layer: Image) -> None:
        marks = [f"{limit:.3g}" for limit in layer.contrast_limits]
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), marks)

    def _slide(self, value: int) -> None:
        self._values[self.mode.currentData()] = value
        if not self._soon.isActive():
            self._soon.start()
