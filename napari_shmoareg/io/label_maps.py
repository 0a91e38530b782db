"""Label maps to draw training pairs from, and the intensities that go with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from napari_shmoareg.engine.subjects import Subject, align_subjects
from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.io.images import read_image

EXTRACEREBRAL = 500  # FreeSurfer-style codes from here on are not brain
PRIORS = "labels_classes_priors"


def read_label_maps(folder: str | Path) -> list[Volume]:
    """The 3D label maps named ``training_seg_*`` of a folder, or else all its NIfTI files, by name.

    Raises
    ------
    InputError
        If the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"A folder of label maps was expected; there is no folder '{folder}'.")
    found = sorted(folder.glob("training_seg_*.nii*")) or sorted(folder.glob("*.nii*"))
    if not found:
        raise InputError(f"The folder '{folder}' holds no label map (.nii or .nii.gz).")
    return [read_image(path, labels=True) for path in found]


def read_subjects(folder: str | Path) -> list[Subject]:
    """Label maps of a folder in one frame, with T1 intensity priors where the folder has them.

    Labels from 500 on are taken as not brain.  Priors are the arrays of SynthSeg, in the subfolder
    ``labels_classes_priors``: which class each label belongs to, and for each class the mean and
    spread of its mean and of its spread, in 0-255.
    """
    maps = read_label_maps(folder)
    outside = sorted({v for volume in maps for v in volume.labels if v >= EXTRACEREBRAL})
    groups, priors = _read_priors(Path(folder) / PRIORS)
    return align_subjects(maps, outside=outside, groups=groups, priors=priors)


def _read_priors(
    folder: Path,
) -> tuple[dict[int, int] | None, dict[int, tuple[float, float, float, float]] | None]:
    if not folder.is_dir():
        return None, None
    names = ("generation_labels", "generation_classes_contrast_specific", "prior_means_t1", "prior_stds_t1")
    try:
        labels, classes, means, spreads = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in names)
    except (OSError, ValueError) as problem:
        raise InputError(
            f"The priors in '{folder}' cannot be read ({problem}); expected the arrays {', '.join(names)} as .npy. "
            "Mend them, or remove the folder to draw without priors."
        ) from problem
    groups = {int(label): int(c) for label, c in zip(labels, classes, strict=True)}
    priors = {
        label: (float(means[0, c]), float(means[1, c]), float(spreads[0, c]), float(spreads[1, c]))
        for label, c in groups.items()
    }
    return groups, priors
