"""Sources of regions: labels, or shapes drawn in the viewer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.compat import isalive
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, LabelNames, Volume
from napari_shmoareg.geometry.volume import labels_in
from napari_shmoareg.plugin.controls.forms import arranged, fill
from napari_shmoareg.plugin.placement import (
    AXES,
    UNITS,
    mm_per,
    names_of,
    tag,
    to_viewer,
    volume_of,
)
from napari_shmoareg.plugin.registrations import label_names

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer, Shapes

    from napari_shmoareg.registration.register import Registration


CLOSED_KINDS = ("rectangle", "polygon", "ellipse")
MAX_OFF_PLANE = 0.5  # largest extent of a shape across its plane, in the layer's units


def drawn_regions(layer: Shapes, grid: Grid, thickness: float = 0.0) -> Volume:
    """Convert the shapes of a layer to labels.

    Parameters
    ----------
    layer : Shapes
        In the viewer's axes S, A, R; rectangles, polygons and ellipses count, lines and paths do
        not.
    grid : Grid
        Grid of the result, usually the fixed image's.
    thickness : float
        Mm on either side of the plane of a shape; voxels that the plane cuts are always included.

    Returns
    -------
    Volume
        Labels on `grid`: n + 1 if the centre of a voxel lies within shape n; later shapes overwrite
        earlier ones.

    Raises
    ------
    InputError
        If the layer does not have three axes, has no closed shape, or one that is not flat.
    """
    values = np.zeros(grid.shape, dtype=np.int32)
    for number, corners, kind in closed_shapes(layer):
        _fill(values, grid, number, _Prism(layer, corners, kind, thickness))
    return Volume(values, grid, layer.name, is_labels=True)


def closed_shapes(layer: Shapes) -> list[tuple[int, NDArray[np.float64], str]]:
    """Number (from 1), corners (n, 3) in the layer's coordinates and kind of every closed shape."""
    if layer.ndim != 3:
        raise InputError(
            f"The shapes of '{layer.name}' have {layer.ndim} axes; three (S, A, R) were expected."
            " Draw in a layer made by 'Draw'."
        )
    kinds = [str(getattr(kind, "value", kind)) for kind in layer.shape_type]
    shapes = enumerate(zip(layer.data, kinds, strict=True), start=1)
    found = [
        (n, np.asarray(corners, dtype=np.float64), kind)
        for n, (corners, kind) in shapes
        if kind in CLOSED_KINDS
    ]
    if not found:
        raise InputError(
            f"Nothing is drawn in '{layer.name}' that encloses a region. Draw a polygon, rectangle"
            " or ellipse in it."
        )
    return found


class _Prism:
    """A flat shape with a thickness."""

    def __init__(
        self, layer: Shapes, corners: NDArray[np.float64], kind: str, thickness: float
    ) -> None:
        origin = np.asarray(layer.data_to_world((0, 0, 0)), dtype=float)
        columns = np.stack(
            [np.asarray(layer.data_to_world(row), dtype=float) - origin for row in np.eye(3)]
        )
        scale = mm_per(layer.units)
        # to mm RAS
        self.linear, self.origin = to_viewer(columns * scale).T, to_viewer(origin * scale)
        flat = int(np.ptp(corners, axis=0).argmin())
        if np.ptp(corners[:, flat]) > MAX_OFF_PLANE:
            raise InputError(
                f"A shape of '{layer.name}' does not lie in one plane. Draw it in one slice."
            )
        self.across = [axis for axis in range(3) if axis != flat]
        self.corners, self.kind, self.thickness = corners[:, self.across], kind, thickness
        normal = np.cross(self.linear[:, self.across[0]], self.linear[:, self.across[1]])
        self.normal = normal / np.linalg.norm(normal)
        self.outline = corners @ self.linear.T + self.origin
        self.middle = float((self.outline @ self.normal).mean())

    def reach(self, grid: Grid) -> float:
        """Mm on either side: the thickness, but at least up to the voxels that the plane cuts."""
        return max(self.thickness, float(np.abs(self.normal @ grid.affine[:3, :3]).sum()) / 2)

    def contains(self, points: NDArray[np.float64], reach: float) -> NDArray[np.bool_]:
        """Whether world points (n, 3), mm RAS, lie in the prism."""
        away = points @ self.normal - self.middle
        slack = 1e-6
        found = (away > -reach - (slack if self.thickness >= reach else -slack)) & (
            away <= reach + slack
        )
        own = (points[found] - self.origin) @ np.linalg.inv(self.linear).T
        within = in_ellipse if self.kind == "ellipse" else in_polygon
        found[found] = within(own[:, self.across], self.corners)
        return found


def _fill(values: NDArray, grid: Grid, number: int, prism: _Prism) -> None:
    """Number the voxels of a shape, within its bounding box."""
    reach = prism.reach(grid)
    ends = np.concatenate([prism.outline + side * reach * prism.normal for side in (-1, 1)])
    index = grid.to_index(ends)
    first = np.clip(np.floor(index.min(axis=0)), 0, grid.shape).astype(int)
    stop = np.clip(np.ceil(index.max(axis=0)) + 1, first, grid.shape).astype(int)
    if (stop <= first).any():
        return
    part = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    box = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(first, stop, strict=True)), indexing="ij"), -1
    )
    found = prism.contains(grid.to_world(box.reshape(-1, 3)), reach).reshape(box.shape[:3])
    values[part][found] = number


def in_polygon(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (n, 2) lie in a polygon (m, 2): a ray from them crosses its edges an odd
    number of times.
    """
    odd = np.zeros(len(points), dtype=bool)
    x, y = points.T
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if ay == by:
            continue
        crosses = (ay > y) != (by > y)
        odd ^= crosses & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return odd


def in_ellipse(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (n, 2) lie in the ellipse inscribed in a box of four consecutive corners."""
    axes = np.stack([corners[1] - corners[0], corners[3] - corners[0]], axis=1) / 2
    if abs(np.linalg.det(axes)) < 1e-12:
        return np.zeros(len(points), dtype=bool)
    own = (points - corners.mean(axis=0)) @ np.linalg.inv(axes).T
    return (own**2).sum(axis=1) <= 1


FIXED, EVERYWHERE = "fixed", "everywhere"
# roles of labels that are not regions of the fixed image
OTHER_ROLES = ("moving_labels", "expert_map", "folding")
TIP = (
    "Source of the regions: the labels of the fixed image, any other labels layer in its world"
    " space, or shapes drawn in the viewer."
)
THICKNESS = 8.0  # default mm on either side of a drawn shape


@dataclass(frozen=True, eq=False)
class Source:
    """A source of regions, which can be read in any thread.

    Attributes
    ----------
    name : str
    layer : Layer or None
        None: the labels of the registration's fixed image.
    thickness : float
        Mm on either side of a drawn shape.
    edits : int
        Number of edits of the layer while it was picked.
    given : LabelNames
        Names of the labels of the fixed image.
    """

    name: str
    layer: Layer | None
    thickness: float
    edits: int = 0
    given: LabelNames = field(default_factory=LabelNames)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal regions."""
        layer = None if self.layer is None else weakref.ref(self.layer)
        return layer, self.thickness if self.drawn else 0.0, self.edits

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.thickness:g} mm either side of the slice)"
            if self.drawn
            else self.name
        )

    @property
    def drawn(self) -> bool:
        """Whether the regions are shapes."""
        return self.layer is not None and self.layer._type_string == "shapes"

    def volume(self, registration: Registration) -> Volume:
        """The regions as labels in the world space of the fixed image; 0 is outside.

        Raises
        ------
        InputError
            If the labels do not exist any more, or the shapes enclose nothing.
        """
        if self.layer is not None:
            layer: Any = self.layer
            return (
                drawn_regions(layer, registration.pair.fixed.grid, self.thickness)
                if self.drawn
                else volume_of(layer)
            )
        if registration.pair.fixed_labels is None:
            raise InputError(
                "This registration has no labels of the fixed image. Pick a layer of labels, or"
                " draw."
            )
        return registration.pair.fixed_labels

    def names(self, registration: Registration) -> dict[int, str]:
        """The names of the regions by number, in the order of the numbers.

        Raises
        ------
        InputError
            As for `volume`.
        """
        if self.drawn:
            layer: Any = self.layer
            return {number: f"{kind} {number}" for number, _, kind in closed_shapes(layer)}
        values = (
            self.volume(registration).values if self.layer is None else np.asarray(self.layer.data)
        )
        given = names_of(self.layer) if self.layer is not None else self.given
        return {number: given.get(number) or str(number) for number in labels_in(values)}


class RegionSource(QWidget):
    """Picks labels or a layer of shapes, or adds a layer to draw in.

    Parameters
    ----------
    viewer : Viewer
    everywhere : bool
        Whether to offer "everywhere", without a region.
    """

    changed = Signal()

    def __init__(self, viewer: Viewer, *, everywhere: bool = False) -> None:
        super().__init__()
        self._viewer, self._everywhere = viewer, everywhere
        self._layers: dict[int, weakref.ref[Layer]] = {}
        self._followed: weakref.ref[Layer] | None = None
        self._registration: weakref.ref[Registration] | None = None
        self._edits: weakref.WeakKeyDictionary[Layer, int] = weakref.WeakKeyDictionary()
        self.combo = QComboBox()
        self.draw = QPushButton("Draw")
        self.draw.setToolTip(
            "Add a layer for polygons, rectangles or ellipses; each shape is a region"
        )
        self.thickness = QDoubleSpinBox()
        self.thickness.setRange(0, 200)
        self.thickness.setDecimals(1)
        self.thickness.setSuffix(" mm")
        self.thickness.setValue(THICKNESS)
        self.thickness.setToolTip("Extent of a drawn shape on either side of its slice")
        self.slab = QWidget()
        row = arranged(QHBoxLayout(), self.combo, self.draw, wide=self.combo)
        side = QLabel("either side of its slice")
        arranged(QHBoxLayout(self.slab), side, self.thickness, wide=side)
        arranged(QVBoxLayout(self), row, self.slab)
        self.combo.currentIndexChanged.connect(lambda _: self._show())
        self.thickness.valueChanged.connect(lambda _: self.changed.emit())
        self.draw.clicked.connect(self._draw)
        self._show()

    @property
    def source(self) -> Source | None:
        """The picked source; None for everywhere, or if there is nothing to pick."""
        found = self.combo.currentData()
        if found == FIXED:
            return Source(self.combo.currentText(), None, 0.0, given=self._names_of_fixed())
        layer = self._layers[found]() if found in self._layers else None
        return (
            None
            if layer is None
            else Source(layer.name, layer, self.thickness.value(), self._edits.get(layer, 0))
        )

    @property
    def ready(self) -> bool:
        """Whether anything is picked, including everywhere."""
        return self.combo.currentData() is not None

    def offer(self, registration: Registration | None) -> None:
        """Offer the current layers for a registration, and keep the picked one if it is open."""
        entries: dict[Any, str] = {EVERYWHERE: "everywhere"} if self._everywhere else {}
        self._registration = None if registration is None else weakref.ref(registration)
        if registration is not None and registration.pair.fixed_labels is not None:
            entries[FIXED] = "labels of the fixed image"
        regions = [layer for layer in self._viewer.layers if _can_define_regions(layer)]
        self._layers = {id(layer): weakref.ref(layer) for layer in regions}
        entries |= {id(layer): layer.name for layer in regions}
        before = self.combo.currentData()
        fill(self.combo, entries)
        self._show(notify=self.combo.currentData() != before)

    def names(self, registration: Registration | None) -> dict[int, str]:
        """The names of the picked regions by number; none while nothing is drawn."""
        source = self.source
        if registration is None or source is None:
            return {}
        try:
            return source.names(registration)
        except InputError:  # nothing drawn so far: reported when the regions are used
            return {}

    def pick(self, layer: Layer) -> None:
        """Pick a layer."""
        self.combo.setCurrentIndex(self.combo.findData(id(layer)))

    def _names_of_fixed(self) -> LabelNames:
        registration = None if self._registration is None else self._registration()
        return LabelNames() if registration is None else label_names(self._viewer, registration)

    def _show(self, *, notify: bool = True) -> None:
        source = self.source
        layer = None if source is None else source.layer
        names = LabelNames() if source is None else names_of(layer) if layer else source.given
        self.combo.setToolTip(TIP + (f" Names: {names.source}." if names else ""))
        self.slab.setVisible(source is not None and source.drawn)
        self._follow(None if source is None else source.layer)
        if notify:
            self.changed.emit()

    def _follow(self, layer: Layer | None) -> None:
        """Follow edits of the picked layer only."""
        before = None if self._followed is None else self._followed()
        if before is layer:
            return
        for emitter in _emitters(before):
            emitter.disconnect(self._redrawn)
        for emitter in _emitters(layer):
            emitter.connect(self._redrawn)
        self._followed = None if layer is None else weakref.ref(layer)

    def _redrawn(self, event: Any = None) -> None:
        if isalive(self):
            if self._followed is not None and (layer := self._followed()) is not None:
                self._edits[layer] = self._edits.get(layer, 0) + 1
            self.changed.emit()

    def _draw(self) -> None:
        """Add a layer with units of mm, and start drawing."""
        layer = self._viewer.add_shapes(
            ndim=3,
            name="drawn region",
            scale=(1, 1, 1),
            units=UNITS,
            axis_labels=AXES,
            face_color="#ffd43b",
            edge_color="#e8590c",
            edge_width=0.5,
            opacity=0.5,
        )
        with signals_blocked(self.combo):
            self.combo.addItem(layer.name, id(layer))
        self._layers[id(layer)] = weakref.ref(layer)
        self.pick(layer)
        self._viewer.layers.selection.active = layer
        layer.mode = "add_polygon"


def _emitters(layer: Layer | None) -> list[Any]:
    """The events of drawing shapes, and of painting or naming labels."""
    events: Any = None if layer is None else layer.events
    return [
        events[name]
        for name in ("data", "paint", "features")
        if events is not None and name in events.emitters
    ]


def _can_define_regions(layer: Layer) -> bool:
    kind, role = layer._type_string, tag(layer, "role")
    if kind == "shapes":
        return role is None and layer.ndim == 3
    return kind == "labels" and layer.ndim == 3 and role not in OTHER_ROLES
