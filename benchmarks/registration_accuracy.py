"""Dice, folding and seconds over all ordered pairs of a folder of images with labels.

    python benchmarks/registration_accuracy.py FOLDER --images '*_brain.nii.gz' --labels '*_seg.nii.gz' --out TABLE.csv

Images and labels are matched in the order of their names.  Labels are carried by nearest
neighbour in one interpolation; Dice is the mean over labels present in either image, on the fixed
image's own grid.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path

import numpy as np
import torch

from napari_shmoareg import load_network, register
from napari_shmoareg.analysis.metrics import dice, folding
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io.images import read_image


def main() -> None:
    """Register every ordered pair, print each as it comes, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", default="*_brain.nii.gz")
    parser.add_argument("--labels", default="*_seg.nii.gz")
    parser.add_argument("--weights", default="small")
    parser.add_argument("--affine", default="auto")
    parser.add_argument("--diffeomorphic", action="store_true")
    parser.add_argument("--size", type=int)
    parser.add_argument("--every", type=int, default=1, help="take only every n-th pair")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images, labels = (sorted(arguments.folder.glob(p)) for p in (arguments.images, arguments.labels))
    if len(images) < 2 or len(images) != len(labels):
        parser.error(f"{len(images)} images and {len(labels)} label maps found in {arguments.folder}")
    subjects = [
        (read_image(image), read_image(label, labels=True)) for image, label in zip(images, labels, strict=True)
    ]
    network = load_network(arguments.weights)
    rows = []
    print(f"{arguments.weights}, {torch.get_num_threads()} threads")
    for moving, fixed in list(itertools.permutations(subjects, 2))[:: arguments.every]:
        pair = VolumePair(moving[0], fixed[0], moving[1], fixed[1])
        began = time.perf_counter()
        result = register(
            pair,
            network,
            affine=arguments.affine,
            size=arguments.size,
            diffeomorphic=arguments.diffeomorphic or None,
        )
        seconds = time.perf_counter() - began
        start = resample(moving[1], fixed[1].grid)
        placed = resample(moving[1], fixed[1].grid, world_map=result.alignment.matrix)
        scores = [
            np.mean(list(dice(v.values, fixed[1].values).values())) for v in (start, placed, result.warped_labels)
        ]
        rows.append(
            {
                "moving": moving[0].name,
                "fixed": fixed[0].name,
                "dice_start": scores[0],
                "dice_affine": scores[1],
                "dice": scores[2],
                "folding_percent": folding(result.jacobian.values),
                "seconds": seconds,
            }
        )
        print("  ".join(v if isinstance(v, str) else f"{v:.4f}" for v in rows[-1].values()), flush=True)
    numbers = {key: np.array([row[key] for row in rows]) for key in list(rows[0])[2:]}
    print(f"\n{len(rows)} pairs")
    for key, values in numbers.items():
        print(
            f"{key:16s} mean {values.mean():.4f}  SD {values.std(ddof=1):.4f}  "
            f"min {values.min():.4f}  max {values.max():.4f}"
        )
    if arguments.out:
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
