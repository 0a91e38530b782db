"""Everything that the experts decided at one place.  Fig. 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_shmoareg.widgets.experts.place.strips import CellStrip, DirectionStrip, TokenStrip

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import Place
    from napari_shmoareg.analysis.place_reading import PlaceReading
    from napari_shmoareg.analysis.scene import Scene

ENCODER = "Attention heads: which the token chose, and with what weight (Eq. 4; they sum to 1)"
DECODER = "Kernels: what each direction's gate gave them (T of Eq. 6); outlined is the chosen one"
IMAGES = ("moving", "fixed")


class PlaceBox(QWidget):
    """Strips of all gates of a registration; those of a place are filled in, in place."""

    picked = Signal(object)  # the Place of a gate

    def __init__(self) -> None:
        super().__init__()
        self.strips: dict[Place, CellStrip] = {}
        self.sizes: dict[tuple[str, int], QLabel] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._body: QWidget | None = None

    def show_scene(self, scene: Scene | None) -> None:
        """Make the strips of a registration's gates."""
        if self._body is not None:
            self._column.removeWidget(self._body)
            self._body.setParent(None)
            self._body = None
        self.strips, self.sizes = {}, {}
        if scene is None:
            return
        self._body = body = QWidget()
        grid = QGridLayout(body)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(1)
        for column in (1, 2):
            grid.setColumnStretch(column, 1)
        self._add_encoder(grid, scene)
        self._add_decoder(grid, scene)
        for strip in self.strips.values():
            strip.picked.connect(self.picked)
        self._column.addWidget(body)

    def show_reading(self, reading: PlaceReading | None) -> None:
        """Fill the strips in, or empty them."""
        cells = {} if reading is None else {cell.place: cell for cell in reading.cells}
        for place, strip in self.strips.items():
            strip.show_cell(cells.get(place))

    def mark(self, place: Place | None) -> None:
        """Mark the gate whose cell is outlined in the canvas."""
        for own, strip in self.strips.items():
            strip.mark(own == place)

    def _add_encoder(self, grid: QGridLayout, scene: Scene) -> None:
        from napari_shmoareg.analysis.expert_palette import IMAGE_COLOURS

        layers = sorted({load.place.layer for load in scene.token_loads})
        if layers:
            _span(grid, _words(ENCODER))
            row = grid.rowCount()
            for column, image in enumerate(IMAGES, start=1):
                grid.addWidget(_heading(f"{image} image"), row, column)
        for layer in layers:
            loads = [load for load in scene.token_loads if load.place.layer == layer]
            _span(grid, self._size("encoder", layer, f"Layer {layer}: tokens of {_mm(loads[0].grid.spacing)}"))
            for block in sorted({load.place.block or 0 for load in loads}):
                row = grid.rowCount()
                grid.addWidget(_tip(QLabel(str(block)), f"Block {block} of encoder layer {layer}"), row, 0)
                for load in loads:
                    place, count = load.place, load.values.shape[-1]
                    if (place.block or 0) == block and place.image in IMAGES:
                        names = [f"Head {n}" for n in range(count)]
                        strip = TokenStrip(place, names, [IMAGE_COLOURS[place.image]] * count)
                        grid.addWidget(strip, row, 1 + IMAGES.index(place.image))
                        self.strips[place] = strip

    def _add_decoder(self, grid: QGridLayout, scene: Scene) -> None:
        from napari_shmoareg.analysis.expert_palette import expert_colours
        from napari_shmoareg.widgets.layers import expert_names, resolution

        maps = sorted(scene.expert_maps, key=lambda one: (one.stride, one.place.direction or ""))
        if maps:
            _span(grid, _words(DECODER))
        for stride in dict.fromkeys(found.stride for found in maps):
            of_stride = [found for found in maps if found.stride == stride]
            first = of_stride[0]
            heading = f"Layer {first.place.layer} ({resolution(first)}): cells of {_mm(first.volume.grid.spacing)}"
            _span(grid, self._size("decoder", first.place.layer, heading))
            for found in of_stride:
                row, count = grid.rowCount(), found.num_experts
                strip = DirectionStrip(found.place, expert_names(scene, count), expert_colours(count))
                direction = found.place.direction or ""
                grid.addWidget(
                    _tip(QLabel(direction), f"Component {direction} of the displacement: {_axis(direction)}"), row, 0
                )
                grid.addWidget(strip, row, 1, 1, 2)
                self.strips[found.place] = strip

    def _size(self, part: str, layer: int, text: str) -> QLabel:
        label = _heading(text)
        self.sizes[part, layer] = label
        return label


def _span(grid: QGridLayout, label: QLabel) -> None:
    grid.addWidget(label, grid.rowCount(), 0, 1, 3)


def _words(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    font = label.font()
    font.setItalic(True)
    label.setFont(font)
    return label


def _heading(text: str) -> QLabel:
    label = QLabel(text)
    label.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignBottom)
    return label


def _tip(label: QLabel, tip: str) -> QLabel:
    label.setToolTip(tip)
    return label


def _mm(spacing: tuple[float, float, float]) -> str:
    """The size of a cell: one number where it is as long along all axes."""
    if max(spacing) - min(spacing) < 0.05:
        return f"{spacing[0]:.1f} mm"
    return " × ".join(f"{length:.1f}" for length in spacing) + " mm"


def _axis(direction: str) -> str:
    """Along which axis of the network grid a component runs; the grid's axes lie nearest to right, front, up."""
    return {"x": "left to right", "y": "back to front", "z": "bottom to top"}.get(direction, direction)
