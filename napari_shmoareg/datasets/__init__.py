"""Data sets: scans, pairs, splits, preprocessing.

Names are imported on first use, so that listing files does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.datasets.cache import VolumeCache
    from napari_shmoareg.datasets.checkup import Checkup, ScanReport
    from napari_shmoareg.datasets.dataset import Dataset, Scan, Skipped
    from napari_shmoareg.datasets.finders import open_dataset
    from napari_shmoareg.datasets.pair_list import (
        PairFiles,
        PairList,
        choose_pairs,
        read_folder,
        read_pair_list,
    )
    from napari_shmoareg.datasets.splits import Split, split_dataset

__all__ = [
    "Checkup",
    "Dataset",
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
    "read_pair_list",
    "split_dataset",
]

_HOMES = {
    "datasets.cache": ("VolumeCache",),
    "datasets.checkup": (
        "Checkup",
        "ScanReport",
    ),
    "datasets.dataset": (
        "Dataset",
        "Scan",
        "Skipped",
    ),
    "datasets.finders": ("open_dataset",),
    "datasets.pair_list": (
        "PairFiles",
        "PairList",
        "choose_pairs",
        "read_folder",
        "read_pair_list",
    ),
    "datasets.splits": (
        "Split",
        "split_dataset",
    ),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"napari_shmoareg.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
