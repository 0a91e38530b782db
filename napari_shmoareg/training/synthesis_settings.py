"""SynthesisSettings: how training pairs are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisSettings:
    """How pairs are drawn.  Lengths are in mm unless said otherwise; "up to" means uniformly drawn.

    Parameters
    ----------
    extent : tuple of 3 (float, float)
        Smallest and largest field of view along x, y and z, but for close-ups.
    size : tuple of 2 int
        Fewest and most voxels along the longest axis of the grid.  Ours: the shape is drawn anew
        for every pair.  On grids of one shape the coarsest level learns where the border is instead
        of how the images differ, and fails at any other shape.
    close : float
        Share of pairs that are close-ups: a part of the field of view, at fine spacing, so that the
        network learns a fine grid at the cost of a coarse one.
    close_spacing : tuple of 2 float
        Smallest and largest spacing of a close-up; its number of voxels is that of any pair.
    close_shift : float
        How far off the middle of the anatomy a close-up may look, along each axis.  Random shapes
        fill the view and nothing beyond it: there it is at most `pose_shift`.
    shapes : float
        Share of pairs that show random shapes instead of a subject.
    same_subject : float
        Share of label-map pairs in which one subject is deformed twice.
    stripped : float
        Share of pairs in which everything outside the brain is removed.
    prior : float
        Share of images with the contrast of the given priors; the others' is random.
    same_contrast : float
        Share of pairs whose two images have the same contrast.
    pose_angle, pose_scale, pose_shift : float
        Of both images together: rotation up to (degrees), scaling up to (fraction), shift up to.
    angle, scale, shift : float
        Of each image alone, what a pre-alignment leaves.
    warp : float
        Standard deviation of each image's own smooth deformation between different subjects.
    same_warp : float
        The same where one subject, or one set of shapes, makes both images.
    warp_length : tuple of 2 float
        Distance between the random displacements that are interpolated.
    bias : float
        Standard deviation of the logarithm of the intensity bias field.
    noise : float
        Largest standard deviation of noise, as a fraction of the intensity range.
    gamma : float
        Standard deviation of the logarithm of the exponent applied to intensities.
    labels : int
        Labels handed to the overlap loss per pair.
    torso : float
        Share of pairs that show torsos, which no label map is needed for (see `training.torso`); of
        the rest, `shapes` is the share of random shapes.  `prior` is the share of torsos that are
        seen in CT.
    torso_extent : tuple of 3 (float, float)
        Smallest and largest field of view on torsos, but for close-ups.
    torso_close_spacing : tuple of 2 float
        Smallest and largest spacing of a close-up of a torso.
    torso_same : float
        Share of torso pairs in which one person is seen twice, at another breath and with other
        contents of the bowel.
    torso_shift, torso_warp : float
        As `shift` and `warp`, of torsos: what an alignment leaves there is much more.
    torso_cut : float
        Share of torso images that do not show all of the pair's view along the body's axis.
    """

    extent: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = (
        (150.0, 185.0),
        (185.0, 220.0),
        (155.0, 200.0),
    )
    size: tuple[int, int] = (48, 64)
    close: float = 0.0
    close_spacing: tuple[float, float] = (1.1, 2.4)
    close_shift: float = 45.0
    shapes: float = 0.3
    same_subject: float = 0.15
    stripped: float = 0.75
    prior: float = 0.6
    same_contrast: float = 0.7
    pose_angle: float = 10.0
    pose_scale: float = 0.08
    pose_shift: float = 12.0
    angle: float = 4.0
    scale: float = 0.05
    shift: float = 4.0
    warp: float = 2.0
    same_warp: float = 5.0
    warp_length: tuple[float, float] = (20.0, 60.0)
    bias: float = 0.25
    noise: float = 0.04
    gamma: float = 0.2
    labels: int = 12
    torso: float = 0.0
    torso_extent: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = (
        (290.0, 430.0),
        (210.0, 320.0),
        (160.0, 420.0),
    )
    torso_close_spacing: tuple[float, float] = (2.0, 4.2)
    torso_same: float = 0.3
    torso_shift: float = 14.0
    torso_warp: float = 8.0
    torso_cut: float = 0.4
