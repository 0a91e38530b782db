"""BTCV abdomens: img/imgXXXX and label/labelXXXX, and the common copies of it."""

from __future__ import annotations

from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.asked import Asked
from napari_shmoareg.io.datasets.name_matching import match_labels, volumes_matching
from napari_shmoareg.io.datasets.scans import Dataset, Window
from napari_shmoareg.io.datasets.subjects import make_scans

SOFT_TISSUE: Window = (-160.0, 240.0)  # Ours, in HU: the paper names no window
_INNER = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
_LAYOUTS = (
    ("img/img*.nii*", "label/label*.nii*"),
    ("imagesTr/img*.nii*", "labelsTr/label*.nii*"),
    ("averaged-training-images/DET*_avg.nii*", "averaged-training-labels/DET*_avg_seg.nii*"),
)


def find_btcv(root: Path) -> tuple[Path, str, str] | None:
    """The folder with BTCV's two folders, and the patterns of images and labels; None if there are none."""
    for inner in _INNER:
        for images, labels in _LAYOUTS:
            place = root / inner
            if any(place.glob(images)) and any(place.glob(labels)):
                return place, images, labels
    return None


def read_btcv(root: Path, asked: Asked) -> Dataset:
    """The scans of BTCV that have labels.

    Parameters
    ----------
    root : Path
        Holds ``img`` and ``label`` (or ``RawData/Training`` with them), ``imagesTr`` and ``labelsTr``, or
        ``averaged-training-images`` and ``averaged-training-labels``.
    asked : Asked
        The window is that of soft tissue, -160 to 240 HU, unless another is given.

    Raises
    ------
    InputError
        If there are no such folders, or fewer than two scans.
    """
    found = find_btcv(root)
    if found is None and not (asked.images and asked.labels):
        raise InputError(
            f"{root} does not look like BTCV: folders img (img0001.nii.gz ...) and label (label0001.nii.gz ...), "
            "RawData/Training with these, or imagesTr and labelsTr were expected. Give --images and --labels patterns."
        )
    place, of_images, of_labels = found or (root, "", "")
    of_images, of_labels = asked.images or of_images, asked.labels or of_labels
    images = volumes_matching(place, of_images)
    if len(images) < 2:
        raise InputError(f"{len(images)} files in {place} match '{of_images}'; at least two were expected.")
    matched = match_labels(place, images, volumes_matching(place, of_labels), (of_images, of_labels))
    return Dataset(
        "btcv",
        root,
        make_scans(place, images, matched.labels, asked.rule),
        window=asked.window or SOFT_TISSUE,
        skipped=tuple(matched.skipped),
        nan=asked.nan,
        channel=asked.channel,
    )
