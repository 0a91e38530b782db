"""Torsos: drawn people from the heart to the pelvis, as label maps for training pairs.

No scan of a person is needed: there is a layout that all share (which organ lies where in a standard body), and each
person has other proportions, organs of another size and place, and at another time another breath and other contents.
Organs are smooth closed shapes and tubes, painted one after the other; each takes what was left of the fat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from napari_shmoareg.engine.subjects import Subject
from napari_shmoareg.engine.torso.body import Body, Torso
from napari_shmoareg.engine.torso.canvas import Canvas
from napari_shmoareg.engine.torso.frame import draw_bones, draw_chest, draw_couch, draw_trunk
from napari_shmoareg.engine.torso.organs import draw_hollow_organs, draw_solid_organs, draw_vessels
from napari_shmoareg.engine.torso.tissues import ALIKE, CLASSES, LABELS, NAMES

__all__ = ["Torso", "draw_torso"]


def draw_torso(
    torso: Torso,
    low: Sequence[float],
    high: Sequence[float],
    spacing: float,
    device: str | torch.device = "cpu",
) -> Subject:
    """The label map of a torso within a box.

    Parameters
    ----------
    torso : Torso
    low, high : 3 floats
        Corners of the box in the torso's frame, mm.
    spacing : float
        Of its voxels, mm.
    device : str or torch.device

    Returns
    -------
    Subject
        Classes are numbered as in `tissues.CLASSES`, labels as in `tissues.LABELS` from 1.
    """
    canvas = Canvas(low, high, spacing, NAMES, np.random.default_rng([torso.seed, 7]), device)
    body = Body(torso, canvas.axes[2].cpu().numpy().astype(np.float64))
    draw_trunk(canvas, body)
    floor = draw_chest(canvas, body)
    draw_bones(canvas, body)
    draw_vessels(canvas, body)
    draw_solid_organs(canvas, body, floor)
    draw_hollow_organs(canvas, body)
    draw_couch(canvas, body)
    labels = np.array([LABELS.index(label) + 1 if label else 0 for _, label in CLASSES])
    groups = np.unique([NAMES.index(ALIKE.get(name, name)) for name in NAMES], return_inverse=True)[1]
    return Subject(canvas.classes, canvas.to_index, labels > 0, groups, labels=labels)
