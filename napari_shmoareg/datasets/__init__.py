"""Data sets: scans, pairs, splits, preprocessing.

Names are imported on first use, so that listing files does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.datasets.checkup import Checkup
    from napari_shmoareg.datasets.dataset import Dataset, Scan, ScanReport, Skipped
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
    "choose_pairs",
    "open_dataset",
    "read_folder",
    "read_pair_list",
    "split_dataset",
]

_HOMES = {
    "checkup": ("Checkup",),
    "dataset": ("Dataset", "Scan", "ScanReport", "Skipped"),
    "finders": ("open_dataset",),
    "pair_list": ("PairFiles", "PairList", "choose_pairs", "read_folder", "read_pair_list"),
    "splits": ("Split", "split_dataset"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"napari_shmoareg.datasets.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
