"""Data sets as they lie on people's disks, as lazy pairs.

Names are imported when first asked for, so that a list of files does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets.checkup import Checkup
    from napari_shmoareg.io.datasets.landmark_files import Landmarks, read_landmarks
    from napari_shmoareg.io.datasets.opening import open_dataset
    from napari_shmoareg.io.datasets.pair_files import PairFiles, PairList, choose_pairs, read_folder, read_pair_list
    from napari_shmoareg.io.datasets.scan_report import ScanReport
    from napari_shmoareg.io.datasets.scans import Dataset, Scan, Skipped
    from napari_shmoareg.io.datasets.splits import Split, split_dataset
    from napari_shmoareg.io.datasets.volume_cache import VolumeCache

__all__ = [
    "Checkup",
    "Dataset",
    "Landmarks",
    "PairFiles",
    "PairList",
    "Scan",
    "ScanReport",
    "Skipped",
    "Split",
    "VolumeCache",
    "choose_pairs",
    "open_dataset",
    "read_folder",
    "read_landmarks",
    "read_pair_list",
    "split_dataset",
]

_HOMES = {
    "checkup": ("Checkup",),
    "landmark_files": ("Landmarks", "read_landmarks"),
    "opening": ("open_dataset",),
    "pair_files": ("PairFiles", "PairList", "choose_pairs", "read_folder", "read_pair_list"),
    "scan_report": ("ScanReport",),
    "scans": ("Dataset", "Scan", "Skipped"),
    "splits": ("Split", "split_dataset"),
    "volume_cache": ("VolumeCache",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
