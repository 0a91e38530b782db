"""Affine pre-alignment of a pair, by SimpleITK.

Both images are first put on coarse, upright, isotropic grids of their own: fast, and a sheared
header (which ITK refuses) is no trouble.  What is found is a matrix from world to world.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.coarse import BINS, CoarsePair, Matrix
from napari_shmoareg.engine.overlap import check_overlap
from napari_shmoareg.geometry import InputError, Volume, VolumePair

if TYPE_CHECKING:
    import SimpleITK as sitk

_Kind = Literal["rigid", "affine"]
MODES = ("auto", "rigid", "affine", "none")
Progress = Callable[[float], None]

ITERATIONS = 100  # at most, per level
SAMPLES = 40_000  # voxels drawn per level, at most
SEED = 20
WORTH = 0.02  # relative gain of similarity for which `auto` moves an image at all
MAY_LOSE = 0.03  # of the similarity, for a better fit of the detail
LEAST_DETAIL = 0.1  # correlation of the detail below which the contrasts differ too much for it


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
    similarity_before, similarity_after : float
        Normalised mutual information in [0, 1] on coarse grids, with the headers only and with
        `matrix`; 0 where less than a quarter of the smaller field of view overlaps.
    seconds : float
    """

    matrix: Matrix
    mode: str
    reason: str
    similarity_before: float
    similarity_after: float
    seconds: float


def align(pair: VolumePair, mode: str = "auto", *, progress: Callable[[str, float], None] | None = None) -> Alignment:
    """Bring a pair together by a rigid and an affine transform.

    Starts: the headers, the centres of the fields of view, the centres of mass; the one whose
    images are most alike is taken.  Then Mattes mutual information, rigid first, affine after;
    at last the correlation of the images with their brightness evened out locally, which
    weighs small structures (vessels, folds) as much as the outline (or, where the contrasts
    differ, mutual information again, at a finer level).
    Ours: a stage stays only where it makes the images more alike; with `auto`, only where the
    gain is worth it (2 %), so that what is aligned already is left alone.  The result is the
    same at every run.

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
    if mode not in MODES:
        raise InputError(f"The affine mode is one of {', '.join(MODES)}; got {mode!r}.")
    begin = time.perf_counter()
    pair.moving.check_image("moving")
    pair.fixed.check_image("fixed")
    coarse = CoarsePair.of(pair)
    before = coarse.similarity(np.eye(4))
    if mode == "none":
        check_overlap(pair, np.eye(4), mode)
        return Alignment(np.eye(4), mode, "The headers were trusted.", before, before, time.perf_counter() - begin)
    report: Progress = (lambda fraction: None) if progress is None else (lambda f: progress("align", f))
    worth = WORTH if mode == "auto" else 0.0
    matrix, best, reason = _start(coarse, before, worth)
    kinds: tuple[_Kind, ...] = ("rigid",) if mode == "rigid" else ("rigid", "affine")
    reports = [partial(_part, report, number, len(kinds) + 1) for number in range(len(kinds) + 1)]
    for kind, told in zip(kinds, reports, strict=False):
        try:
            trial = _refine(coarse, matrix, kind, told)
        except _OptimiserError as error:
            reason.append(f"the {kind} stage found no way ({error})")
            continue
        reached = coarse.similarity(trial)
        if reached > best * (1 + worth):
            reason.append(f"the {kind} stage raised the similarity from {best:.3f} to {reached:.3f}")
            matrix, best = trial, reached
        else:
            reason.append(f"the {kind} stage was dropped ({reached:.3f} against {best:.3f})")
    if mode == "auto" and np.array_equal(matrix, np.eye(4)):
        reason.append("no stage was worth moving the images for: the headers were kept")
    else:
        matrix, best, why = _fit_detail(coarse, matrix, best, kinds[-1], worth, reports[-1])
        reason.append(why)
    report(1.0)
    check_overlap(pair, matrix, mode)
    return Alignment(matrix, mode, "; ".join(reason).capitalize() + ".", before, best, time.perf_counter() - begin)


def _fit_detail(
    coarse: CoarsePair, matrix: Matrix, best: float, kind: _Kind, worth: float, report: Progress
) -> tuple[Matrix, float, str]:
    """The last stage, at finer levels and on detail: the matrix, its similarity, and why."""
    detail = coarse.detail
    before = detail.correlation(matrix)
    fits = before >= LEAST_DETAIL
    try:
        trial = _refine(detail if fits else coarse, matrix, kind, report, levels=(2, 1), correlate=fits)
    except _OptimiserError as error:
        return matrix, best, f"the detail stage found no way ({error})"
    if not fits:  # contrasts differ: mutual information at the finer levels
        reached = coarse.similarity(trial)
        if reached > best:
            return trial, reached, f"the fine stage raised the similarity from {best:.3f} to {reached:.3f}"
        return matrix, best, f"the fine stage was dropped ({reached:.3f} against {best:.3f})"
    after, reached = detail.correlation(trial), coarse.similarity(trial)
    change = f"of small structures from {before:.3f} to {after:.3f}"
    if after > before * (1 + worth) and reached > best * (1 - MAY_LOSE):
        return trial, reached, f"the detail stage raised the correlation {change}"
    return (
        matrix,
        best,
        f"the detail stage was dropped (correlation {change}, similarity from {best:.3f} to {reached:.3f})",
    )


def _part(report: Progress, number: int, parts: int, fraction: float) -> None:
    report((number + fraction) / parts)


class _OptimiserError(Exception):
    """SimpleITK gave up on a stage."""


def _start(coarse: CoarsePair, before: float, worth: float) -> tuple[Matrix, float, list[str]]:
    """The matrix to start from, its similarity, and why."""
    found = {name: (coarse.similarity(matrix), matrix) for name, matrix in coarse.starts.items()}
    name = max(found, key=lambda n: found[n][0])
    similarity, matrix = found[name]
    if similarity > before * (1 + worth):
        why = f"started from {name}, which fit better than the headers ({similarity:.3f} against {before:.3f})"
        return matrix, similarity, [why]
    why = f"started from the headers, which fit as well as {name} ({before:.3f} against {similarity:.3f})"
    return np.eye(4), before, [why]


def _refine(
    coarse: CoarsePair,
    matrix: Matrix,
    kind: _Kind,
    report: Progress,
    *,
    levels: tuple[int, ...] = (4, 2),
    correlate: bool = False,
) -> Matrix:
    """One stage from `matrix`, by mutual information or correlation, at levels of so many coarse voxels.

    SimpleITK works in units of coarse fixed voxels about the middle of the fixed image, so that
    its step lengths fit a mouse as well as a man.
    """
    import SimpleITK as sitk

    unit, middle = coarse.fixed.grid.spacing[0], coarse.fixed.grid.centre
    to_world = np.diag([unit, unit, unit, 1.0])
    to_world[:3, 3] = middle
    start = np.linalg.inv(to_world) @ matrix @ to_world
    transform = sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3)
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation(start[:3, 3].tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums in one order: the same result at every run
    method.SetNumberOfWorkUnits(1)
    if correlate:
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = coarse.fixed.values.size
    method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES * level**3 / voxels) for level in levels], SEED)
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
            raise _OptimiserError(str(error).strip().splitlines()[-1]) from error
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
