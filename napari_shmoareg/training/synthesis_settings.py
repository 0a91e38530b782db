"""SynthesisSettings: settings of the synthetic training pairs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of synthetic pairs. Lengths are in mm unless stated otherwise; "up to" means
    uniform.

    Parameters
    ----------
    extent : tuple of 3 (float, float)
        Smallest and largest field of view along x, y and z, except for close-ups.
    size : tuple of 2 int
        Smallest and largest number of voxels along the longest axis. Ours: every pair has its own
        random shape. On grids of one shape the coarsest level learns where the border is instead of
        how the images differ, and fails at any other shape.
    close : float
        Share of close-ups: part of the field of view at fine spacing, so that the network learns
        fine grids at the cost of a coarse one.
    close_spacing : tuple of 2 float
        Smallest and largest spacing of a close-up, which has as many voxels as other pairs.
    close_shift : float
        Largest offset of a close-up from the centre of the anatomy, along each axis. Random shapes
        only fill the field of view, so it is at most `pose_shift` there.
    shapes : float
        Share of pairs of random shapes instead of a subject.
    same_subject : float
        Share of label-map pairs that deform one subject twice.
    stripped : float
        Share of pairs with everything outside the brain removed.
    prior : float
        Share of images with the contrast of the priors; the others have a random contrast.
    same_contrast : float
        Share of pairs whose two images have the same contrast.
    pose_angle, pose_scale, pose_shift : float
        Common pose of both images: rotation up to (degrees), scaling up to (fraction), shift up to.
    angle, scale, shift : float
        Pose of each image, as a pre-alignment leaves it.
    warp : float
        Standard deviation of the smooth deformation of each image, for different subjects.
    same_warp : float
        The same, if both images show one subject or one set of shapes.
    warp_length : tuple of 2 float
        Distance between the interpolated random displacements.
    bias : float
        Standard deviation of the logarithm of the intensity bias field.
    noise : float
        Largest standard deviation of noise, as a fraction of the intensity range.
    gamma : float
        Standard deviation of the logarithm of the exponent applied to intensities.
    labels : int
        Number of labels per pair for the overlap loss.
    torso : float
        Share of torso pairs, which need no label map (see `training.torso`); `shapes` is the share
        of random shapes among the rest. `prior` is the share of torsos with CT contrast.
    torso_extent : tuple of 3 (float, float)
        Smallest and largest field of view of torsos, except for close-ups.
    torso_close_spacing : tuple of 2 float
        Smallest and largest spacing of a close-up of a torso.
    torso_same : float
        Share of torso pairs that show one person twice, at another breath and with other bowel
        contents.
    torso_shift, torso_warp : float
        As `shift` and `warp`, for torsos, where an alignment leaves much larger differences.
    torso_cut : float
        Share of torso images that are cut off along the body axis.
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
