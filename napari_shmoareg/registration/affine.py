"""Affine pre-alignment of a pair, by SimpleITK.

Both images are first resampled to coarse, upright, isotropic grids of their own: fast, and a
sheared header (which ITK refuses) is no trouble.  The result is a matrix from world to world.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_shmoareg.errors import NoOverlapError
from napari_shmoareg.geometry import Grid, Volume, VolumePair, apply_affine, inside
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.registration.agreement import BINS, Agreement, CoarseImages, Matrix
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.start_search import search
from napari_shmoareg.settings import RegistrationSettings, check_choice

if TYPE_CHECKING:
    import SimpleITK as sitk


LONGEST = 96  # voxels of the coarse grids along their longest axis
DETAIL_SIGMA = 1.5  # coarse voxels: the neighbourhood in which brightness is evened out
DETAIL_FLOOR = 0.005  # of the range: contrast below this is noise


@dataclass(frozen=True, eq=False)
class CoarsePair:
    """Both images in [0, 1], each on a coarse upright grid of its own.

    Ours: isotropic, along R, A, S, and at most 96 voxels long, whatever the headers are.
    """

    moving: Volume
    fixed: Volume

    @classmethod
    def of(cls, pair: VolumePair) -> CoarsePair:
        return cls(_upright(pair.moving), _upright(pair.fixed))

    @property
    def detail(self) -> CoarsePair:
        """Both with their brightness and contrast evened out locally, in [0, 1]."""
        return CoarsePair(_evened(self.moving), _evened(self.fixed))

    def centre_of_mass(self, role: str) -> NDArray[np.float64]:
        """World position (mm, RAS) of the mean of brightness of one image, "moving" or "fixed"."""
        volume: Volume = getattr(self, role)
        mass = volume.values.astype(np.float64)
        index = [
            np.average(np.arange(n), weights=mass.sum(axis=tuple(a for a in range(3) if a != axis)))
            for axis, n in enumerate(mass.shape)
        ]
        return volume.grid.to_world(index)


def _upright(volume: Volume) -> Volume:
    """In [0, 1] on an isotropic grid along R, A, S around the field of view, at most 96 voxels
    long.
    """
    corners = volume.grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = max((high - low).max() / LONGEST, min(volume.grid.spacing))
    i, j, k = (max(2, int(n)) for n in np.ceil((high - low) / spacing - 1e-6))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (np.array([i, j, k]) - 1) / 2
    coarse = resample(volume, Grid((i, j, k), affine))
    return coarse.with_values(Intensity.of(volume).scale(coarse.values))


def _evened(volume: Volume) -> Volume:
    """(value - local mean) / local standard deviation; +-3 of these to [0, 1]."""
    mean = gaussian_filter(volume.values, DETAIL_SIGMA)
    square = gaussian_filter(volume.values**2, DETAIL_SIGMA)
    deviation = np.sqrt(np.maximum(square - mean**2, 0)) + DETAIL_FLOOR
    return volume.with_values(np.clip((volume.values - mean) / deviation / 6 + 0.5, 0, 1))


SMALLEST = 0.01  # of the smaller field of view


def overlap(moving: Grid, fixed: Grid, matrix: NDArray[np.float64]) -> float:
    """Share of the smaller field of view that lies in the other, in [0, 1].

    Parameters
    ----------
    moving, fixed : Grid
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    """
    there = inside(moving, apply_affine(matrix, _lattice(fixed))).mean()
    back = inside(fixed, apply_affine(np.linalg.inv(matrix), _lattice(moving))).mean()
    return float(max(there, back))


def check_overlap(pair: VolumePair, matrix: NDArray[np.float64], mode: str) -> None:
    """Refuse a pair that does not meet after alignment.

    Raises
    ------
    NoOverlapError
        If less than 1 % of the smaller field of view lies in the other.
    """
    share = overlap(pair.moving.grid, pair.fixed.grid, matrix)
    if share >= SMALLEST:
        return
    offset = pair.moving.grid.centre - apply_affine(matrix, pair.fixed.grid.centre)
    where = ", ".join(f"{v:.0f}" for v in offset)
    advice = (
        "Use {affine:auto}, which can start from the centres of the images."
        if mode != "auto"
        else "Check that both files show the same body part and that their headers are right."
    )
    raise NoOverlapError(
        f"The moving image '{pair.moving.name}' and the fixed image '{pair.fixed.name}' do not"
        f" overlap (affine: {mode}): their fields of view share {100 * share:.1f} % and the"
        f" middle of the moving one lies {np.linalg.norm(offset):.0f} mm from the middle of the"
        f" fixed one (x, y, z: {where} mm).",
        remedy=advice,
    )


def _lattice(grid: Grid, most: int = 24) -> NDArray[np.float64]:
    """World points (n, 3) spread evenly over the field of view."""
    axes = []
    for n in grid.shape:
        steps = min(n, most)
        axes.append((np.arange(steps) + 0.5) * n / steps - 0.5)
    return grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))


_Kind = Literal["rigid", "affine"]
Progress = Callable[[float], None]

ITERATIONS = 100  # at most, per level
SAMPLES = 40_000  # voxels drawn per level, at most
SEED = 20
COMPARED_VOXELS = 64  # voxels of the images on which stages are compared
WORTH = 0.08  # relative gain of agreement for which `auto` moves an image at all
STAGE_WORTH = 0.01  # relative gain for which `auto` keeps a stage
TURN_WORTH = 0.1  # relative gain for which the orientation of the header is given up
RIVAL = 0.8  # share of the best shift's score for which a turned start is tried too
RIVALS = 4  # turned starts that are tried
LEAST_DETAIL = 0.1  # correlation of the detail below which the contrasts differ too much for it
LEAST_VOXELS = 4  # along every axis of a level
DETAIL_STAGES = 3  # at most
AGAIN = 0.05  # relative gain of a detail stage after which another one is run
STRETCH = 2.0  # an affine stage that stretches or shrinks an axis beyond this factor is dropped


@dataclass(frozen=True, eq=False)
class Alignment:
    """The affine found for a pair.

    Attributes
    ----------
    matrix : (4, 4) array
        Fixed world to moving world, mm RAS.
    mode : {"auto", "rigid", "affine", "none"}
        What was asked for.
    reason : str
        For people: what was tried, kept and dropped, and why.
    before, after : Agreement
        On coarse grids, with the headers only and with `matrix`: mutual information, correlation
        of the detail, and coverage.
    seconds : float
    """

    matrix: Matrix
    mode: str
    reason: str
    before: Agreement
    after: Agreement
    seconds: float


def align(
    pair: VolumePair, mode: str = "auto", *, progress: Callable[[str, float], None] | None = None
) -> Alignment:
    """Bring a pair together by a rigid and an affine transform.

    Starts: the headers, the centres of the fields of view and of mass, and a search over all
    shifts and, where these bring no clear agreement, the 24 orientations along the axes.  Then
    Mattes mutual information, rigid first, affine after; at last the correlation of the images
    with their brightness evened out locally, which weighs small structures (vessels, folds) as
    much as the outline (or, where the contrasts differ, mutual information at a finer level).
    Ours: a stage stays only where the images agree better for it (see `Agreement`, which counts
    how much of each image is compared); with `auto`, all stages together have to gain 8 %, or the
    headers are kept: what is aligned already is left alone.  Another orientation than the
    header's has to gain 10 %.  The result is the same at every run.

    Parameters
    ----------
    pair : VolumePair
    mode : {"auto", "rigid", "affine", "none"}
        "none" trusts the headers.
    progress : callable or None
        Called with "align" and a fraction.  What it raises ends the work and comes out here.

    Returns
    -------
    Alignment

    Raises
    ------
    InputError
        If the mode is not one of the four or an image cannot be registered.
    NoOverlapError
        If the images do not meet after all this.
    """
    check_choice(RegistrationSettings, "affine", mode)
    begin = time.perf_counter()
    pair.moving.check_image("moving")
    pair.fixed.check_image("fixed")
    judge = CoarseImages.of(pair, COMPARED_VOXELS)
    before = judge.agreement(np.eye(4))
    if mode == "none":
        check_overlap(pair, np.eye(4), mode)
        reason = "The headers were trusted."
        return Alignment(np.eye(4), mode, reason, before, before, time.perf_counter() - begin)
    coarse = CoarsePair.of(pair)
    report = _rising(progress)
    worth = STAGE_WORTH if mode == "auto" else 0.0
    kinds: tuple[_Kind, ...] = ("rigid",) if mode == "rigid" else ("rigid", "affine")
    parts = [partial(_part, report, number, len(kinds) + 2) for number in range(len(kinds) + 2)]
    matrix, best, reasons = _start(pair, coarse, judge, before, worth, parts[0])
    for kind, part in zip(kinds, parts[1:], strict=False):
        try:
            trial = _refine(coarse, matrix, kind, part)
        except _OptimiserError as error:
            reasons.append(f"the {kind} stage found no way ({error})")
            continue
        reached = judge.agreement(trial)
        change = f"from {best.score:.3f} to {reached.score:.3f}"
        if _stretches(trial):
            reasons.append(
                f"the {kind} stage was dropped (it stretched an axis more than {STRETCH:g} times)"
            )
        elif reached.score > best.score * (1 + worth):
            reasons.append(f"the {kind} stage raised the agreement {change}")
            matrix, best = trial, reached
        else:
            reasons.append(f"the {kind} stage was dropped (agreement {change})")
    for _ in range(DETAIL_STAGES):
        score = best.score
        matrix, best = _fit_detail(coarse, judge, matrix, best, kinds[-1], reasons, parts[-1])
        if best.score <= score * (1 + AGAIN):
            break
    if mode == "auto" and best.score <= before.score * (1 + WORTH):
        reasons.append(
            "the headers were kept, as all stages together gained too little to move the images"
            f" for ({before.score:.3f} to {best.score:.3f})"
        )
        matrix, best = np.eye(4), before
    report(1.0)
    check_overlap(pair, matrix, mode)
    if best.score > before.score and best.detail < before.detail - 0.02:
        reasons.append(
            f"mutual information rose ({before.information:.3f} to {best.information:.3f}) while"
            f" the detail agrees less ({before.detail:.3f} to {best.detail:.3f}): compare both in a"
            " viewer"
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
    judge: CoarseImages,
    matrix: Matrix,
    best: Agreement,
    kind: _Kind,
    reasons: list[str],
    report: Progress,
) -> tuple[Matrix, Agreement]:
    """The last stage, at finer levels: the matrix and its agreement; why is appended to
    `reasons`.
    """
    fits = best.detail >= LEAST_DETAIL
    name = "detail" if fits else "fine"
    try:
        trial = _refine(
            coarse.detail if fits else coarse, matrix, kind, report, levels=(2, 1), correlate=fits
        )
    except _OptimiserError as error:
        reasons.append(f"the {name} stage found no way ({error})")
        return matrix, best
    reached = judge.agreement(trial)
    change = f"from {best.score:.3f} to {reached.score:.3f}"
    if reached.score > best.score and not _stretches(trial):
        reasons.append(f"the {name} stage raised the agreement {change}")
        return trial, reached
    reasons.append(f"the {name} stage was dropped (agreement {change})")
    return matrix, best


def _stretches(matrix: Matrix) -> bool:
    """Whether an affine stretches or shrinks an axis beyond what bodies differ by."""
    sizes = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(sizes.max() > STRETCH or sizes.min() < 1 / STRETCH)


def _rising(progress: Callable[[str, float], None] | None) -> Progress:
    """Reports fractions that never fall, whatever is run again."""
    furthest = 0.0

    def report(fraction: float) -> None:
        nonlocal furthest
        furthest = max(furthest, fraction)
        if progress is not None:
            progress("align", furthest)

    return report


def _part(report: Progress, number: int, parts: int, fraction: float) -> None:
    report((number + fraction) / parts)


class _OptimiserError(Exception):
    """SimpleITK gave up on a stage."""


def _start(
    pair: VolumePair,
    coarse: CoarsePair,
    judge: CoarseImages,
    before: Agreement,
    worth: float,
    report: Progress,
) -> tuple[Matrix, Agreement, list[str]]:
    """The matrix to start from, its agreement, and why."""
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
    scored = {name: judge.agreement(matrix) for name, matrix in shifts.items()}
    name = max(scored, key=lambda n: scored[n].score)
    matrix, best = np.eye(4), before
    numbers = f"agreement {before.score:.3f} by the headers, {scored[name].score:.3f} by {name}"
    why = f"started from the headers ({numbers})"
    if scored[name].score > before.score * (1 + worth):
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
        tried.append((judge.agreement(moved), moved))
        report(0.3 + 0.7 * (number + 1) / (len(rivals) + 1))
    upright, (turned, turn) = tried[0][0], max(tried[1:], key=lambda entry: entry[0].score)
    if turned.score > max(upright.score, best.score) * (1 + TURN_WORTH):
        angle = _angle(turn)
        numbers = (
            f"agreement {turned.score:.3f} against {upright.score:.3f} in the header's orientation"
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
    """Of the rotation in an affine, in degrees."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))


def _refine(
    coarse: CoarsePair,
    matrix: Matrix,
    kind: _Kind,
    report: Progress,
    *,
    levels: tuple[int, ...] = (4, 2),
    correlate: bool = False,
) -> Matrix:
    """One stage from `matrix`, by mutual information or correlation, at levels of so many coarse
    voxels.

    SimpleITK works in units of coarse fixed voxels about the middle of the fixed image, so that
    its step lengths fit a mouse as well as a man.
    """
    import SimpleITK as sitk

    thinnest = min(*coarse.fixed.grid.shape, *coarse.moving.grid.shape)
    levels = tuple(level for level in levels if thinnest >= LEAST_VOXELS * level)
    if not levels:
        raise _OptimiserError(f"an image has only {thinnest} voxels along an axis")
    unit, middle = coarse.fixed.grid.spacing[0], coarse.fixed.grid.centre
    to_world = np.diag([unit, unit, unit, 1.0])
    to_world[:3, 3] = middle
    start = np.linalg.inv(to_world) @ matrix @ to_world
    transform = sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation(start[:3, 3].tolist())
    method = sitk.ImageRegistrationMethod()
    # mutual information sums its parts as they come: with one, always the same result
    units = 2 if correlate else 1
    method.SetNumberOfThreads(units)
    method.SetNumberOfWorkUnits(units)
    if correlate:
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = coarse.fixed.values.size
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

    def tell() -> None:
        if stopped:
            return
        try:
            done = method.GetCurrentLevel() + min(1.0, method.GetOptimizerIteration() / ITERATIONS)
            report(done / len(levels))
        except BaseException as error:  # must not cross C++; raised again below
            stopped.append(error)
            method.StopRegistration()

    method.AddCommand(sitk.sitkIterationEvent, tell)
    try:
        method.Execute(*(_sitk_image(v, unit, middle) for v in (coarse.fixed, coarse.moving)))
    except RuntimeError as error:
        if not stopped:
            raise _OptimiserError("the optimiser gave up: the images show too little") from error
    if stopped:
        raise stopped[0]
    found = np.eye(4)
    found[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    found[:3, 3] = transform.GetTranslation()
    return to_world @ found @ np.linalg.inv(to_world)


def _sitk_image(volume: Volume, unit: float, middle: NDArray[np.float64]) -> sitk.Image:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.values.transpose(2, 1, 0)))
    image.SetSpacing([s / unit for s in volume.grid.spacing])
    image.SetOrigin(((volume.grid.affine[:3, 3] - middle) / unit).tolist())
    return image
