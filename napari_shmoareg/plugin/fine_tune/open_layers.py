"""Open layers written to disk as a data set of images, labels and subjects."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QHeaderView, QLabel, QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import read_object
from napari_shmoareg.plugin.controls import pickers
from napari_shmoareg.plugin.controls.forms import arranged
from napari_shmoareg.plugin.controls.pickers import NO_LABELS, LayerPicker
from napari_shmoareg.plugin.placement import tag, volume_of

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer


COPY = re.compile(r" \[\d+\]$")  # suffix that napari adds to duplicate names
# not part of the subject in a layer's name
KIND_WORDS = {"label", "labels", "seg", "segmentation", "mask", "masks", "image", "img"}


def labels_by_image(images: Sequence[Layer], labels: Sequence[Layer]) -> dict[Layer, Layer]:
    """Match labels layers to image layers by role, or else by name.

    Each labels layer is used at most once; ambiguous matches are omitted.
    """
    found: dict[Layer, Layer] = {}
    for key_of in (role, subject):
        unmatched = [image for image in images if image not in found]
        free = [la for la in labels if la not in found.values()]
        found |= _unique_pairs(unmatched, free, key_of)
    return found


def role(layer: Layer) -> str:
    """Return ``moving`` for a moving image and its labels; empty without a role."""
    return str(tag(layer, "role") or "").removesuffix("_labels")


def subject(layer: Layer) -> str:
    """Return the lowercase name without words for images and labels: ``sub-1`` of ``sub-1_seg``."""
    parts = re.split(r"[\s_.-]+", COPY.sub("", layer.name).lower())
    return "-".join(part for part in parts if part and part not in KIND_WORDS)


def _unique_pairs(
    images: Sequence[Layer], labels: Sequence[Layer], key_of: Callable[[Layer], Hashable]
) -> dict[Layer, Layer]:
    """Pair images and labels layers whose key occurs exactly once in each."""
    found = {}
    for image in images:
        key = key_of(image)
        matches = [la for la in labels if key_of(la) == key]
        if key and len(matches) == 1 and sum(key_of(other) == key for other in images) == 1:
            found[image] = matches[0]
    return found


IMAGES, LABELS = "images", "labels"  # folders
SUBJECT = r"^(.+?)__"  # in a file name
FORMAT = "shmoareg-layers-1"
LIST = "layers.json"  # lists the written files, so that nothing else is replaced


class Picked(NamedTuple):
    """An image layer, its labels layer or None, and its subject."""

    image: Layer
    labels: Layer | None
    subject: str


def write_layers(picked: Sequence[Picked], folder: Path) -> Path:
    """Write layers as a folder of images and a list of its files.

    Parameters
    ----------
    picked : sequence of Picked
    folder : Path
        New, empty, or written by this function before: then it is replaced.  Written atomically.

    Returns
    -------
    Path
        The folder, with the same file names in ``images/`` and ``labels/``.

    Raises
    ------
    InputError
        If there are fewer than two images, a layer is not a single 3D volume, or the folder is not
        writable.
    """
    from napari_shmoareg.geometry.resample import resample
    from napari_shmoareg.io import write_image
    from napari_shmoareg.io.files import new_folder

    if len(picked) < 2:
        raise InputError(
            f"At least two image layers are needed; {len(picked)} chosen. Tick more layers."
        )
    if is_ours(folder):
        shutil.rmtree(folder)
    with new_folder(folder) as made:
        for kind in (
            (IMAGES, LABELS) if any(each.labels is not None for each in picked) else (IMAGES,)
        ):
            (made / kind).mkdir()
        for name, each in zip(file_names(picked), picked, strict=True):
            image = volume_of(each.image)
            write_image(image, made / IMAGES / f"{name}.nii.gz")
            if each.labels is not None:
                labels = volume_of(each.labels)
                if not labels.grid.same_space(image.grid):
                    labels = resample(labels, image.grid)
                write_image(labels, made / LABELS / f"{name}.nii.gz")
        files = sorted(str(file.relative_to(made).as_posix()) for file in made.rglob("*.nii.gz"))
        (made / LIST).write_text(
            json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n", encoding="utf-8"
        )
    return folder


def is_ours(folder: Path) -> bool:
    """Whether a folder contains only what `write_layers` wrote."""
    if folder.is_symlink() or not (folder / LIST).is_file():
        return False
    try:
        about = read_object(folder / LIST, "a list of written layers")
        files = {
            folder / IMAGES,
            folder / LABELS,
            folder / LIST,
            *(folder / name for name in about["files"]),
        }
        return about["format"] == FORMAT and set(folder.rglob("*")) <= files
    except (OSError, ValueError, KeyError, TypeError):
        return False


def file_names(picked: Sequence[Picked]) -> list[str]:
    """Return a unique and valid file name ``SUBJECT__LAYER`` for each layer."""
    names: list[str] = []
    for each in picked:
        name = f"{_plain(each.subject)}__{_plain(each.image.name)}"
        count = sum(before.rsplit("~", 1)[0] == name for before in names)
        names.append(f"{name}~{count + 1}" if count else name)
    return names


def _plain(text: str) -> str:
    return re.sub(r"_{2,}", "_", re.sub(r"[^\w.-]+", "-", text)).strip("-._") or "layer"


HEADINGS = ("Image", "Labels", "Subject")
TIPS = (
    "Ticked images are used for training. Each is written on its own grid.",
    "Optional labels of this image, for the overlap loss and Dice.",
    ("Subject of the image: all images of a subject are in the same subset. Double-click to edit."),
)
ROWS = 6  # shown at once
EXPLANATION = (
    "When the run starts, the ticked layers are written to a folder next to the run's folder. With"
    " few subjects, set Split to, for example, 2/0/0: all for training, none for validation."
)


class LayersBox(QWidget):
    """A table of the viewer's image layers, without the plugin's results."""

    changed = Signal()

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._images: list[weakref.ref[Layer]] = []
        self._picked_by_hand: weakref.WeakSet[Layer] = weakref.WeakSet()  # images
        self.table = QTableWidget(0, len(HEADINGS))
        for n, heading in enumerate(HEADINGS):
            item = QTableWidgetItem(heading)
            item.setToolTip(f"<qt>{TIPS[n]}</qt>")
            self.table.setHorizontalHeaderItem(n, item)
        rows, columns = self.table.verticalHeader(), self.table.horizontalHeader()
        assert rows is not None and columns is not None
        rows.setVisible(False)
        columns.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.table.setShowGrid(False)
        self.table.setMinimumHeight(ROWS * 28)
        self.table.itemChanged.connect(lambda _: self.changed.emit())
        explanation = QLabel(EXPLANATION)
        explanation.setWordWrap(True)
        arranged(QVBoxLayout(self), self.table, explanation)
        self.refresh()

    @property
    def picked(self) -> list[Picked]:
        """The ticked images."""
        found = []
        for row, ref in enumerate(self._images):
            image, name = ref(), self.table.item(row, 0)
            if (
                image is not None
                and name is not None
                and name.checkState() == Qt.CheckState.Checked
            ):
                subject = self.table.item(row, 2)
                found.append(
                    Picked(
                        image, self._picker(row).layer, subject.text() if subject else image.name
                    )
                )
        return found

    def refresh(self) -> None:
        """List the open layers; those listed before keep their ticks, labels and subjects."""
        viewer = self._viewer()
        if viewer is None:
            return
        images, labels = (
            [
                la
                for la in pickers.selectable_layers(viewer.layers, kind)
                if pickers.rejection(la) is None and not _result(la)
            ]
            for kind in ("image", "labels")
        )
        before = {id(ref()): row for row, ref in enumerate(self._images)}
        retained = {
            n: self._state(before[id(image)])
            for n, image in enumerate(images)
            if id(image) in before
        }
        by_hand = {
            images[n]: state[1]
            for n, state in retained.items()
            if images[n] in self._picked_by_hand
        }
        guessed = labels_by_image(
            [image for image in images if image not in by_hand],
            [la for la in labels if la not in by_hand.values()],
        )
        blocked = self.table.blockSignals(True)
        self.table.setRowCount(0)
        self.table.setRowCount(len(images))
        self._images = [weakref.ref(image) for image in images]
        for row, image in enumerate(images):
            ticked, chosen, subject = retained.get(row, (True, None, image.name))
            if image not in self._picked_by_hand:
                chosen = guessed.get(image)
            name, subject_item = QTableWidgetItem(image.name), QTableWidgetItem(subject)
            name.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            name.setCheckState(Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
            name.setToolTip(image.name)
            picker = LayerPicker(NO_LABELS)
            picker.setMinimumContentsLength(4)
            picker.offer(labels, chosen if chosen in labels else None)
            picker.activated.connect(lambda _, ref=self._images[row]: self._on_picked(ref))
            self.table.setItem(row, 0, name)
            self.table.setCellWidget(row, 1, picker)
            self.table.setItem(row, 2, subject_item)
        self.table.blockSignals(blocked)
        self.changed.emit()

    def _on_picked(self, ref: weakref.ref[Layer]) -> None:
        """Remember the labels that the user picked for an image, and remove them from others."""
        image = ref()
        if image is not None:
            self._picked_by_hand.add(image)
            rows = {other(): self._picker(row) for row, other in enumerate(self._images)}
            for other, picker in rows.items():  # a labels layer belongs to one image
                if (
                    other is not image
                    and picker.layer is not None
                    and picker.layer is rows[image].layer
                ):
                    picker.setCurrentIndex(0)
            self.changed.emit()

    def _state(self, row: int) -> tuple[bool, Layer | None, str]:
        name, subject = self.table.item(row, 0), self.table.item(row, 2)
        assert name is not None and subject is not None
        return name.checkState() == Qt.CheckState.Checked, self._picker(row).layer, subject.text()

    def _picker(self, row: int) -> LayerPicker:
        picker = self.table.cellWidget(row, 1)
        assert isinstance(picker, LayerPicker)
        return picker


def _result(layer: Layer) -> bool:
    """Whether the layer is a result of this plugin."""
    from napari_shmoareg.plugin.placement import tag

    return tag(layer, "registration") is not None or tag(layer, "number") is not None
