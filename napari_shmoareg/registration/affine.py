"""Affine pre-alignment of a pair with SimpleITK.

Each image is first resampled to a coarse isotropic grid along R, A, S, which is fast and allows
sheared headers (which ITK refuses).  The result is a matrix from world to world.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.errors import NoOverlapError
from napari_shmoareg.geometry import Grid, Transform, Volume, VolumePair, apply_affine, inside
from napari_shmoareg.geometry.resample import resample, resample_mask
from napari_shmoareg.registration.agreement import BINS, Agreement, CoarseImages, Matrix
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.start_search import search
from napari_shmoareg.settings import RegistrationSettings, check_choice

if TYPE_CHECKING:
    import SimpleITK as sitk


LONGEST = 96  # voxels of the coarse grids along their longest axis
DETAIL_SIGMA = 1.5  # coarse voxels: neighbourhood of the local normalisation
DETAIL_FLOOR = 0.005  # fraction of the range: contrast below this is noise


@dataclass(frozen=True, eq=False)
class CoarsePair:
    """Both images in [0, 1], each on its own coarse grid, and the mask on that of the fixed one.

    Ours: isotropic, along R, A, S, at most 96 voxels long, for any header.
    """

    moving: Volume
    fixed: Volume
    fixed_mask: Volume | None = None

    @classmethod
    def of(cls, pair: VolumePair) -> CoarsePair:
        moving, fixed, mask = _coarse(pair.moving), _coarse(pair.fixed), pair.fixed_mask
        if mask is None:
            return cls(moving, fixed)
        inside = resample_mask(mask, fixed.grid).astype(np.uint8)
        return cls(moving, fixed, Volume(inside, fixed.grid, mask.name, is_labels=True))

    @property
    def detail(self) -> CoarsePair:
        """Both images with locally normalised brightness and contrast, in [0, 1]."""
        return CoarsePair(_normalised(self.moving), _normalised(self.fixed), self.fixed_mask)

    def centre_of_mass(self, role: str) -> NDArray[np.float64]:
        """Return the brightness-weighted centre (mm, RAS) of one image, "moving" or "fixed"."""
        volume: Volume = getattr(self, role)
        mass = volume.values.astype(np.float64)
        index = [
            np.average(np.arange(n), weights=mass.sum(axis=tuple(a for a in range(3) if a != axis)))
            for axis, n in enumerate(mass.shape)
        ]
        return volume.grid.to_world(index)


def _coarse(volume: Volume) -> Volume:
    """Resample the field of view to an isotropic grid along R, A, S and scale to [0, 1]."""
    corners = volume.grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = max((high - low).max() / LONGEST, min(volume.grid.spacing))
    i, j, k = (max(2, int(n)) for n in np.ceil((high - low) / spacing - 1e-6))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (np.array([i, j, k]) - 1) / 2
    coarse = resample(volume, Grid((i, j, k), affine))
    return coarse.with_values(Intensity.of(volume).scale(coarse.values))


def _normalised(volume: Volume) -> Volume:
    """Compute (value - local mean) / local standard deviation, mapping +-3 to [0, 1]."""
    mean = gaussian_filter(volume.values, DETAIL_SIGMA)
    square = gaussian_filter(volume.values**2, DETAIL_SIGMA)
    deviation = np.sqrt(np.maximum(square - mean**2, 0)) + DETAIL_FLOOR
    return volume.with_values(np.clip((volume.values - mean) / deviation / 6 + 0.5, 0, 1))


HEADERS, INITIAL = "headers", "initial transform"  # where an alignment starts
LEAST_OVERLAP = 0.01  # fraction of the smaller field of view


def overlap(moving: Grid, fixed: Grid, matrix: NDArray[np.float64]) -> float:
    """Compute the fraction of the smaller field of view inside the other, in [0, 1].

    Parameters
    ----------
    moving, fixed : Grid
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    """
    of_fixed = inside(moving, apply_affine(matrix, _lattice(fixed))).mean()
    of_moving = inside(fixed, apply_affine(np.linalg.inv(matrix), _lattice(moving))).mean()
    return float(max(of_fixed, of_moving))


def check_overlap(
    pair: VolumePair, matrix: NDArray[np.float64], mode: str, origin: str = HEADERS
) -> None:
    """Check that the images of a pair overlap after alignment.

    Raises
    ------
    NoOverlapError
        If less than 1 % of the smaller field of view is inside the other.
    """
    share = overlap(pair.moving.grid, pair.fixed.grid, matrix)
    if share >= LEAST_OVERLAP:
        return
    offset = pair.moving.grid.centre - apply_affine(matrix, pair.fixed.grid.centre)
    position = ", ".join(f"{v:.0f}" for v in offset)
    advice = (
        "Use {affine:auto}, which can start from the centres of the images."
        if mode != "auto"
        else "Check that both files show the same body part and that their headers are right."
    )
    if origin != HEADERS:
        advice += " The initial transform has to map points of the fixed image to the moving one."
    raise NoOverlapError(
        f"The moving image '{pair.moving.name}' and the fixed image '{pair.fixed.name}' do not"
        f" overlap (affine: {mode}): their fields of view share {100 * share:.1f} %, and the"
        f" centre of the moving one is {np.linalg.norm(offset):.0f} mm from the centre of the"
        f" fixed one (x, y, z: {position} mm).",
        remedy=advice,
    )


def _lattice(grid: Grid, most: int = 24) -> NDArray[np.float64]:
    """Return world points (n, 3) spread evenly over the field of view."""
    axes = []
    for n in grid.shape:
        steps = min(n, most)
        axes.append((np.arange(steps) + 0.5) * n / steps - 0.5)
    return grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))


_Kind = Literal["rigid", "affine"]
FractionCallback = Callable[[float], None]

ITERATIONS = 100  # at most, per level
SAMPLES = 40_000  # voxels drawn per level, at most
SEED = 20
COMPARED_VOXELS = 64  # longest axis of the images on which stages are compared
TOTAL_GAIN = 0.08  # relative gain of agreement needed for `auto` to align at all
STAGE_GAIN = 0.01  # relative gain needed for `auto` to keep a stage
TURN_GAIN = 0.1  # relative gain needed to change the orientation of the header
RIVAL = 0.8  # fraction of the best shift's score from which a rotated start is tried too
RIVALS = 4  # rotated starts to try, at most
LEAST_DETAIL = 0.1  # correlation of detail below which the contrasts differ too much
LEAST_VOXELS = 4  # along each axis of a level
DETAIL_STAGES = 3  # at most
REPEAT_GAIN = 0.05  # relative gain of a detail stage after which another one is run
STRETCH = 2.0  # an affine stage that stretches or shrinks an axis beyond this factor is dropped


@dataclass(frozen=True, eq=False)
class Alignment:
    """The affine found for a pair.

    Attributes
    ----------
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    mode : {"auto", "rigid", "affine", "none"}
        As requested.
    reason : str
        For display: the stages tried, kept and dropped, and why.
    before, after : Agreement
        On coarse grids, at the start (the headers, or the initial affine) and with `matrix`: mutual
        information, correlation of detail, and coverage.
    seconds : float
    initial : (4, 4) array or None
        The initial affine, which `matrix` includes; None if it started from the headers.
    """

    matrix: Matrix
    mode: str
    reason: str
    before: Agreement
    after: Agreement
    seconds: float
    initial: Matrix | None = None


def align(
    pair: VolumePair,
    mode: str = "auto",
    *,
    initial: ArrayLike | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Alignment:
    """Align a pair with a rigid and an affine transform.

    Starts from the headers, the centres of the fields of view, the centres of mass, or a search
    over all shifts and, if these do not clearly agree, the 24 orientations along the axes.  Then
    optimises Mattes mutual information, first rigid, then affine; finally the correlation of the
    locally normalised images, which weights small structures (vessels, folds) like the outline (or,
    if the contrasts differ, mutual information at a finer level).
    Ours: a stage is kept only if it improves the agreement of the images (see `Agreement`, which
    includes the compared fraction of each image).  With `auto`, all stages together must gain 8 %,
    otherwise the headers are kept, so that aligned pairs stay unchanged.  An orientation other than
    the header's must gain 10 %.  The result is deterministic.

    An initial affine P replaces the headers: the stages look for B in P B, as if the moving image
    were moved by the inverse of P first.  Another start is searched for only if nothing agrees
    there.

    Parameters
    ----------
    pair : VolumePair
    mode : {"auto", "rigid", "affine", "none"}
        "none" uses the headers, or the initial affine, only.
    initial : (4, 4) array or None
        Fixed world to moving world, mm RAS: where to start.
    progress : callable or None
        Called with "align" and a fraction.  Its exceptions end the alignment and propagate.

    Returns
    -------
    Alignment

    Raises
    ------
    InputError
        If the mode or the initial affine is not valid, or an image cannot be registered.
    NoOverlapError
        If the images do not overlap after the alignment.
    """
    check_choice(RegistrationSettings, "affine", mode)
    pair.moving.check_image("moving")
    pair.fixed.check_image("fixed")
    if initial is None:
        return _align(pair, mode, HEADERS, progress)
    matrix = Transform(np.asarray(initial, dtype=np.float64)).affine
    grid = pair.moving.grid
    placed = replace(pair.moving, grid=Grid(grid.shape, np.linalg.inv(matrix) @ grid.affine))
    Intensity.of(pair.moving).remember(placed)
    found = _align(replace(pair, moving=placed, moving_labels=None), mode, INITIAL, progress)
    return replace(found, matrix=matrix @ found.matrix, initial=matrix)


def _align(
    pair: VolumePair,
    mode: str,
    origin: str,
    progress: Callable[[str, float], None] | None,
) -> Alignment:
    """Align a pair whose start, the headers or an initial transform, is in its grids."""
    begin = time.perf_counter()
    images = CoarseImages.of(pair, COMPARED_VOXELS)
    before = images.agreement(np.eye(4))
    if mode == "none":
        check_overlap(pair, np.eye(4), mode, origin)
        kept = (
            f"{origin} were used as they are"
            if origin == HEADERS
            else f"{origin} was kept as it is"
        )
        return Alignment(
            np.eye(4), mode, f"The {kept}.", before, before, time.perf_counter() - begin
        )
    coarse = CoarsePair.of(pair)
    report = _monotonic(progress)
    gain = STAGE_GAIN if mode == "auto" else 0.0
    kinds: tuple[_Kind, ...] = ("rigid",) if mode == "rigid" else ("rigid", "affine")
    parts = [partial(_part, report, number, len(kinds) + 2) for number in range(len(kinds) + 2)]
    if origin == HEADERS or before.score == 0:
        matrix, best, reasons = _start(pair, coarse, images, before, gain, origin, parts[0])
    else:
        matrix, best = np.eye(4), before
        reasons = [f"started from the {origin} (agreement {before.score:.3f})"]
    for kind, part in zip(kinds, parts[1:], strict=False):
        try:
            trial = _refine(coarse, matrix, kind, part)
        except _OptimiserError as error:
            reasons.append(f"the {kind} stage failed ({error})")
            continue
        reached = images.agreement(trial)
        change = f"from {best.score:.3f} to {reached.score:.3f}"
        if _stretches(trial):
            reasons.append(
                f"the {kind} stage was dropped (it stretched an axis more than {STRETCH:g} times)"
            )
        elif reached.score > best.score * (1 + gain):
            reasons.append(f"the {kind} stage raised the agreement {change}")
            matrix, best = trial, reached
        else:
            reasons.append(f"the {kind} stage was dropped (agreement {change})")
    for _ in range(DETAIL_STAGES):
        score = best.score
        matrix, best = _fit_detail(coarse, images, matrix, best, kinds[-1], reasons, parts[-1])
        if best.score <= score * (1 + REPEAT_GAIN):
            break
    if mode == "auto" and best.score <= before.score * (1 + TOTAL_GAIN):
        reasons.append(
            f"the {origin} {'were' if origin == HEADERS else 'was'} kept, as all stages together"
            f" gained too little ({before.score:.3f} to {best.score:.3f})"
        )
        matrix, best = np.eye(4), before
    report(1.0)
    check_overlap(pair, matrix, mode, origin)
    if best.score > before.score and best.detail < before.detail - 0.02:
        reasons.append(
            f"mutual information rose ({before.information:.3f} to {best.information:.3f}) but the"
            f" agreement of detail fell ({before.detail:.3f} to {best.detail:.3f}): compare both in"
            " a viewer"
        )
    return Alignment(
        matrix,
        mode,
        "; ".join(reasons).capitalize() + ".",
        before,
        best,
        time.perf_counter() - begin,
    )


def _fit_detail(
    coarse: CoarsePair,
    images: CoarseImages,
    matrix: Matrix,
    best: Agreement,
    kind: _Kind,
    reasons: list[str],
    report: FractionCallback,
) -> tuple[Matrix, Agreement]:
    """Run the last stage, at finer levels; appends its outcome to `reasons`."""
    fits = best.detail >= LEAST_DETAIL
    name = "detail" if fits else "fine"
    try:
        trial = _refine(
            coarse.detail if fits else coarse, matrix, kind, report, levels=(2, 1), correlate=fits
        )
    except _OptimiserError as error:
        reasons.append(f"the {name} stage failed ({error})")
        return matrix, best
    reached = images.agreement(trial)
    change = f"from {best.score:.3f} to {reached.score:.3f}"
    if reached.score > best.score and not _stretches(trial):
        reasons.append(f"the {name} stage raised the agreement {change}")
        return trial, reached
    reasons.append(f"the {name} stage was dropped (agreement {change})")
    return matrix, best


def _stretches(matrix: Matrix) -> bool:
    """Whether an affine scales an axis by more than anatomies differ."""
    sizes = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(sizes.max() > STRETCH or sizes.min() < 1 / STRETCH)


def _monotonic(progress: Callable[[str, float], None] | None) -> FractionCallback:
    """Wrap a callback so that the fractions never decrease."""
    furthest = 0.0

    def report(fraction: float) -> None:
        nonlocal furthest
        furthest = max(furthest, fraction)
        if progress is not None:
            progress("align", furthest)

    return report


def _part(report: FractionCallback, number: int, parts: int, fraction: float) -> None:
    report((number + fraction) / parts)


class _OptimiserError(Exception):
    """SimpleITK failed in a stage."""


def _start(
    pair: VolumePair,
    coarse: CoarsePair,
    images: CoarseImages,
    before: Agreement,
    gain: float,
    origin: str,
    report: FractionCallback,
) -> tuple[Matrix, Agreement, list[str]]:
    """Choose the matrix to start from; returns it, its agreement, and the reasons."""
    found = search(pair)
    shifts = {
        "the centres of the fields of view": _translation(
            pair.moving.grid.centre - pair.fixed.grid.centre
        ),
        "the centres of mass": _translation(
            coarse.centre_of_mass("moving") - coarse.centre_of_mass("fixed")
        ),
    }
    straight = next((start.matrix for start in found if not start.turned), None)
    if straight is not None:
        shifts["a search over all shifts"] = straight
    scored = {name: images.agreement(matrix) for name, matrix in shifts.items()}
    name = max(scored, key=lambda n: scored[n].score)
    matrix, best = np.eye(4), before
    numbers = f"agreement {before.score:.3f} by the {origin}, {scored[name].score:.3f} by {name}"
    why = f"started from the {origin} ({numbers})"
    if scored[name].score > before.score * (1 + gain):
        matrix, best, why = shifts[name], scored[name], f"started from {name} ({numbers})"
    report(0.3)
    clear = max((start.agreement.score for start in found if not start.turned), default=0.0)
    rivals = [start for start in found if start.turned and start.agreement.score >= RIVAL * clear][
        :RIVALS
    ]
    if not rivals:
        return matrix, best, [why]
    tried: list[tuple[Agreement, Matrix]] = []
    for number, start in enumerate([matrix, *(rival.matrix for rival in rivals)]):
        try:
            moved = _refine(coarse, start, "rigid", lambda fraction: report(0.3), levels=(4,))
        except _OptimiserError:
            moved = start
        tried.append((images.agreement(moved), moved))
        report(0.3 + 0.7 * (number + 1) / (len(rivals) + 1))
    upright, (turned, turn) = tried[0][0], max(tried[1:], key=lambda entry: entry[0].score)
    if turned.score > max(upright.score, best.score) * (1 + TURN_GAIN):
        angle = _angle(turn)
        numbers = (
            f"agreement {turned.score:.3f}, against {upright.score:.3f} in the header's orientation"
        )
        return (
            turn,
            turned,
            [f"started {angle:.0f} degrees from the header's orientation ({numbers})"],
        )
    return matrix, best, [why]


def _translation(shift: NDArray[np.float64]) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def _angle(matrix: Matrix) -> float:
    """Return the rotation angle of an affine in degrees."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))


def _refine(
    coarse: CoarsePair,
    matrix: Matrix,
    kind: _Kind,
    report: FractionCallback,
    *,
    levels: tuple[int, ...] = (4, 2),
    correlate: bool = False,
) -> Matrix:
    """Run one stage from `matrix`, by mutual information or correlation; levels shrink the images.

    SimpleITK gets coordinates in coarse fixed voxels relative to the centre of the fixed image, so
    that its step lengths suit images of any size.
    """
    import SimpleITK as sitk

    thinnest = min(*coarse.fixed.grid.shape, *coarse.moving.grid.shape)
    levels = tuple(level for level in levels if thinnest >= LEAST_VOXELS * level)
    if not levels:
        raise _OptimiserError(f"an image has only {thinnest} voxels along an axis")
    unit, centre = coarse.fixed.grid.spacing[0], coarse.fixed.grid.centre
    to_world = np.diag([unit, unit, unit, 1.0])
    to_world[:3, 3] = centre
    start = np.linalg.inv(to_world) @ matrix @ to_world
    transform = sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation(start[:3, 3].tolist())
    method = sitk.ImageRegistrationMethod()
    # parallel sums of mutual information depend on the order; one work unit is deterministic
    units = 2 if correlate else 1
    method.SetNumberOfThreads(units)
    method.SetNumberOfWorkUnits(units)
    if correlate:
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = coarse.fixed.values.size
    if coarse.fixed_mask is not None:
        inside_mask = coarse.fixed_mask.with_values(
            (coarse.fixed_mask.values != 0).astype(np.uint8)
        )
        method.SetMetricFixedMask(_sitk_image(inside_mask, unit, centre))
        voxels = max(1, int(inside_mask.values.sum()))
    method.SetMetricSamplingPercentagePerLevel(
        [min(1.0, SAMPLES * level**3 / voxels) for level in levels], SEED
    )
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, ITERATIONS, 0.5, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([level / 2 if level > 1 else 0 for level in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    stopped: list[BaseException] = []

    def report_progress() -> None:
        if stopped:
            return
        try:
            done = method.GetCurrentLevel() + min(1.0, method.GetOptimizerIteration() / ITERATIONS)
            report(done / len(levels))
        except BaseException as error:  # must not cross C++; raised again below
            stopped.append(error)
            method.StopRegistration()

    method.AddCommand(sitk.sitkIterationEvent, report_progress)
    try:
        method.Execute(*(_sitk_image(v, unit, centre) for v in (coarse.fixed, coarse.moving)))
    except RuntimeError as error:
        if not stopped:
            raise _OptimiserError(
                "the optimiser failed: the images have too little structure"
            ) from error
    if stopped:
        raise stopped[0]
    found = np.eye(4)
    found[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    found[:3, 3] = transform.GetTranslation()
    return to_world @ found @ np.linalg.inv(to_world)


def _sitk_image(volume: Volume, unit: float, centre: NDArray[np.float64]) -> sitk.Image:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.values.transpose(2, 1, 0)))
    image.SetSpacing([s / unit for s in volume.grid.spacing])
    image.SetOrigin(((volume.grid.affine[:3, 3] - centre) / unit).tolist())
    return image
