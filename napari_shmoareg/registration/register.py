"""register() and Registration; choice of the stage to keep, and warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import DisplacementField, Grid, Transform, Volume, VolumePair
from napari_shmoareg.model import RoutingTrace, SHMoAReg
from napari_shmoareg.registration.affine import Alignment, align
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.registration.contrast import match_contrast
from napari_shmoareg.registration.deformation import (
    refine_conformed,
    run_network,
    warp_pair,
)
from napari_shmoareg.registration.intensity import background_of
from napari_shmoareg.registration.refinement import smoothed
from napari_shmoareg.registration.resources import (
    check_images_memory,
    check_network_memory,
    find_device,
)
from napari_shmoareg.registration.similarity import Similarity, compare_images
from napari_shmoareg.settings import RegistrationSettings

STAGES = ("before", "affine", "initial", "network", "refined")
MUCH_FOLDING = 1.0  # percent of voxels
MARGIN = 0.01  # fraction of the unexplained rest by which a later stage must be better
AGREED = 0.8  # score above which images agree up to noise and interpolation
TRUST = 0.1  # by which the network must score above the refinement to be kept instead
MOVED = 0.35  # fraction of the unexplained rest that a transform of such images must explain
NOTABLE = 0.01  # change of a similarity that is reported
LOST = 0.05  # loss of coverage that is reported
LITTLE = 0.15  # score below which images hardly agree at all


def choose_stage(
    similarity: Mapping[str, Similarity | None], keep: str = "best"
) -> tuple[str, str]:
    """Choose the stage at which the images agree best; returns it and the reason.

    Ours: the score of `Similarity` (mutual information, local correlation and coverage) decides; a
    later stage must be better than an earlier one by more than 1 % of the unexplained rest.
    Images that already agree by their headers up to noise and interpolation (a score above 0.8) are
    not moved unless that explains a third of the rest, as a deformation can always fit some noise.
    For the same reason the smoother refinement is preferred to the network's rougher deformation
    unless its score is lower by 0.1: on brains and hippocampi it had the higher Dice with the lower
    score.

    Parameters
    ----------
    similarity : mapping of str to Similarity or None
        For some of `STAGES`; None if the images do not overlap.
    keep : {"best", "last"}
        "last" always chooses the last stage.
    """
    scores = {
        stage: 0.0 if (found := similarity[stage]) is None else found.score
        for stage in STAGES
        if stage in similarity
    }
    candidates = dict(scores)
    if "network" in candidates and candidates["network"] < candidates.get("refined", -1.0) + TRUST:
        del candidates["network"]
    best = max(candidates.values())
    kept = next(stage for stage, score in candidates.items() if score >= best - MARGIN * (1 - best))
    first, score = next(iter(scores.items()))
    if score > AGREED and best - score < MOVED * (1 - score):
        kept = first
    numbers = ", ".join(f"{score:.3f} {stage}" for stage, score in scores.items())
    if keep == "last":
        last = list(scores)[-1]
        return last, f"{last}, as requested (agreement {numbers}; {kept} agrees best)"
    return kept, f"{kept}, by image agreement ({numbers})"


def find_warnings(
    similarity: Mapping[str, Similarity | None],
    kept: str,
    folding_percent: float,
    settings: Mapping[str, Any],
) -> list[str]:
    """Return warnings about the result of a registration, as sentences.

    Parameters
    ----------
    similarity, kept, folding_percent, settings
        As in `Registration`.
    """
    found = []
    if settings.get("untrained"):
        found.append(
            "These weights are untrained: nothing is deformed, and the expert choices are"
            " meaningless."
        )
    last = next(stage for stage in reversed(STAGES) if stage in similarity)
    scores = {stage: s.score for stage in STAGES if (s := similarity.get(stage)) is not None}
    best = max(scores, key=lambda stage: scores[stage], default=last)
    allowed = TRUST if (best, last) == ("network", "refined") else NOTABLE
    if kept == last and scores.get(last, 0.0) < scores.get(best, 0.0) - allowed:
        found.append(
            f"The last stage made the images less similar: agreement {scores[best]:.3f} {best}, "
            f"{scores.get(last, 0.0):.3f} {last}. "
            + ("The weights may not suit these images: try" if "network" in similarity else "Try")
            + " another size, other weights, or keep the best stage."
        )
    if kept != last and not settings.get("untrained") and scores.get(last, 0.0) != scores.get(kept):
        outcome = {
            "before": "The images were left as in their headers",
            "affine": "Only the alignment was kept",
            "initial": "Only the initial deformation was kept",
            "network": "The refinement was not kept",
        }[kept]
        why = (
            "no motion was needed"
            if scores.get(kept, 0.0) > AGREED
            else "try another size or other weights"
        )
        found.append(
            f"{outcome}: the later stages did not improve the agreement of the images (agreement"
            f" {scores.get(kept, 0.0):.3f} {kept}, {scores.get(last, 0.0):.3f} {last}); {why}."
        )
    before, after = similarity["before"], similarity["after"]
    if before is not None and after is not None and kept != "before":
        found += _regressions(before, after)
    if after is not None and after.score < LITTLE:
        found.append(
            f"The images hardly agree (mutual information {after.nmi:.3f}, local correlation"
            f" {after.local:.3f}), so they cannot confirm the result. Check it in a viewer, or with"
            " labels or landmarks."
        )
    if folding_percent > MUCH_FOLDING:
        found.append(
            f"The deformation folds in {folding_percent:.2f} % of the voxels (jacobian.nii.gz shows"
            " where)"
            + ("." if settings["diffeomorphic"] else "; a diffeomorphic deformation folds less.")
        )
    return found


def _regressions(before: Similarity, after: Similarity) -> list[str]:
    """Describe where the result is worse than the original positions."""
    found = []
    if after.coverage < before.coverage - LOST:
        found.append(
            f"Less of the anatomy is compared than before ({100 * before.coverage:.0f} % to"
            f" {100 * after.coverage:.0f} % of it is in both fields of view): the alignment may"
            " have shifted parts out of view. Compare the result with the original images."
        )
    shared, local = after.information - before.information, after.local - before.local
    if min(shared, local) < -NOTABLE and max(shared, local) > NOTABLE:
        found.append(
            "The metrics disagree on whether the result is better than the original images: mutual"
            f" information changed from {before.information:.3f} to {after.information:.3f}, local"
            f" correlation from {before.local:.3f} to {after.local:.3f}. Compare both in a viewer,"
            " or give labels or landmarks."
        )
    return found


ProgressCallback = Callable[[str, float], None]

SIZE = 160  # of the network grid without a network: that of the shipped weights
PHASES = ("align", "conform", "network", "refine", "measure", "warp")


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of `register`, or its saved part (`read_registration`).

    Attributes
    ----------
    pair : VolumePair
        The input.
    transform : Transform
        Fixed world to moving world, T(x) = A(x + d(x)), mm RAS; d on the network grid.
    warped : Volume
        The moving image on the fixed image's own grid, by one interpolation of the original;
        float32.
    warped_labels : Volume or None
        The moving labels on that grid, nearest neighbour, same dtype; None without labels.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    jacobian : Volume
        det(I + dd/dx) of the deformation alone (without the affine), on the fixed grid; 0 or less
        is folding.
    routing : RoutingTrace
        Decisions of all gates in the last pass (see `cascade`), detached, on the CPU; empty without
        a network.  Read from a folder, the decoder's gate values are in steps of 1/65535, and NaN
        if the folder was written before gate values were saved.
    network_grid : Grid
        Grid of network and refinement, in the fixed world.
    alignment : Alignment
        The affine and its reason.
    similarity : dict of Similarity or None
        "before" (headers only), "affine", "after" (the kept stage); "initial" with an initial
        deformation, "network" and "refined" if they ran (not from a folder).  None if the images do
        not overlap.
    kept : {"before", "affine", "initial", "network", "refined"}
        Stage of the transform: the one at which the images agree best (see `choose_stage`).
    choices : dict of str
        Automatic decisions and their reasons: "affine", "contrast", "kept" and, with refinement,
        "similarity" and "refinement"; with a mask, "mask".
    seconds : dict of float
        Per phase.
    settings : dict
        The settings with their resolved values; JSON values.
    weights : str
        Name of the weights; empty if unknown.
    report : mapping
        As in report.json (`build_report`); empty without a report.
    folder : Path or None
        Folder from which it was read.
    """

    pair: VolumePair
    transform: Transform
    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    jacobian: Volume
    routing: RoutingTrace
    network_grid: Grid
    alignment: Alignment
    similarity: dict[str, Similarity | None]
    kept: str
    choices: dict[str, str]
    seconds: dict[str, float]
    settings: dict[str, Any]
    weights: str = ""
    report: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    @property
    def affine(self) -> NDArray[np.float64]:
        """A of T(x) = A(x + d(x)): fixed world to moving world, (4, 4), mm RAS."""
        return self.transform.affine

    @property
    def deformation(self) -> DisplacementField:
        """The deformation without the affine, A^-1(T(x)) - x, on the fixed grid; not cached."""
        return self.displacement.after(np.linalg.inv(self.affine).astype(np.float64))

    @property
    def kernels(self) -> list[int]:
        """Sizes of the decoder experts' convolutions, in the order of their ids; empty without a
        network.
        """
        return list(self.settings["network"].get("kernels", ()))

    @property
    def folding_percent(self) -> float:
        """Percentage of the voxels of the fixed grid with a Jacobian of 0 or less."""
        return 100 * float((self.jacobian.values <= 0).mean())

    @property
    def warnings(self) -> list[str]:
        """Warnings about the result, as sentences; see `find_warnings`."""
        if self.folder is not None:
            return list(self.report["warnings"])
        return find_warnings(self.similarity, self.kept, self.folding_percent, self.settings)


def register(
    pair: VolumePair,
    network: SHMoAReg | None,
    settings: RegistrationSettings | None = None,
    *,
    initial: Transform | ArrayLike | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Registration:
    """Register the moving image of a pair onto the fixed one.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view.  With a mask of the fixed image,
        alignment, refinement and similarity count only voxels in it; the network sees all.
    network : SHMoAReg or None
        Is moved to the device and stays there.  None: only alignment and, with `refine`,
        refinement.
    settings : RegistrationSettings, optional
        Default: all defaults.
    initial : Transform, (4, 4) array or None
        Initial transform, fixed world to moving world, mm RAS, as in ITK: where to start instead of
        the headers.  The alignment optimises it, and keeps it as it is with ``affine="none"`` or if
        it has a displacement field; network and refinement start from both.  It is part of the
        resulting transform, and the headers alone are then never the result.
    progress : callable or None
        Called with a phase ("align", "conform", "network", "refine", "measure", "warp") and a
        fraction of it; its exceptions end the registration and propagate.
    **options
        Fields of `RegistrationSettings` that override `settings`: ``refine=60``.

    Returns
    -------
    Registration

    Raises
    ------
    InputError
        If an image, an option or the initial transform is not valid.
    NoOverlapError
        If the images do not overlap after the alignment.
    TooLargeError
        If the memory is not sufficient.
    """
    settings = _resolved(replace(settings or RegistrationSettings(), **options), network)
    config, device = None if network is None else network.config, find_device(settings.device)
    diffeomorphic = bool(settings.diffeomorphic)
    check_images_memory(pair.moving.grid, pair.fixed.grid)
    seconds: dict[str, float] = {}
    phase = partial(_phase, seconds, progress)
    with phase("align"):
        matrix, bend, mode = _initial(initial, settings.affine)
        alignment = align(pair, mode, initial=matrix, progress=progress)
    with phase("conform"):
        conformed = conform(pair, size=settings.size or SIZE, affine=alignment.matrix, start=bend)
        check_network_memory(
            config, conformed.grid, moving=pair.moving.grid, fixed=pair.fixed.grid, device=device
        )
        empty = background_of(pair.moving), background_of(pair.fixed)
        matched = match_contrast(
            conformed.moving, conformed.fixed, settings.contrast, backgrounds=empty
        )
        choices = {"affine": alignment.reason, "contrast": matched.reason}
        images = matched.moving, conformed.fixed
        if pair.fixed_mask is not None:
            share = 100 * float((pair.fixed_mask.values != 0).mean())
            choices["mask"] = (
                f"the images are compared within '{pair.fixed_mask.name}' only, {share:.1f} % of"
                " the fixed image: alignment, refinement and similarity"
            )
    routing, passes = RoutingTrace(()), list[float]()
    fields: dict[str, Tensor] = {}
    if network is not None:
        with phase("network") as report:
            found = run_network(
                network, *images, diffeomorphic=diffeomorphic, device=device, progress=report
            )
            routing, passes = found.last.routing.detached(), list(found.passes)
            fields["network"] = smoothed(found.displacement, settings.smoothness)
    if settings.refine:
        with phase("refine") as report:
            fields["refined"], decisions = refine_conformed(
                conformed, images, empty, fields.get("network"), settings, device, report
            )
            choices |= decisions
    with phase("measure"):
        stages = {"before": Transform(np.eye(4)), "affine": Transform(alignment.matrix)}
        if bend is not None:
            fields = {"initial": torch.zeros((1, 3, *conformed.grid.shape)), **fields}
        stages |= {name: conformed.transform(u) for name, u in fields.items()}
        out = ("before",) if initial is not None else ()
        out = (*out, "affine") if bend is not None else out
        similarity, kept, choices["kept"] = _compare(pair, stages, settings.keep, out)
    transform = _on_grid(stages[kept], conformed)
    with phase("warp"):
        warped = warp_pair(pair, transform, settings.fill)
        jacobian = warped.jacobian()
    return Registration(
        pair=pair,
        transform=transform,
        warped=warped.warped,
        warped_labels=warped.warped_labels,
        displacement=warped.displacement,
        jacobian=jacobian,
        routing=routing,
        network_grid=conformed.grid,
        alignment=alignment,
        similarity=similarity,
        kept=kept,
        choices=choices,
        seconds=seconds,
        settings=_settings(settings, device, network, passes)
        | ({} if bend is None else {"initial_deformation": True}),
    )


def _initial(
    initial: Transform | ArrayLike | None, mode: str
) -> tuple[NDArray[np.float64] | None, DisplacementField | None, str]:
    """Return the affine and the field of an initial transform, and the mode of the alignment."""
    if initial is None:
        return None, None, mode
    start = initial if isinstance(initial, Transform) else Transform(np.asarray(initial))
    if start.field is None:
        return start.affine, None, mode
    if mode not in ("auto", "none"):
        raise InputError(
            f"must be 'auto' or 'none' with an initial deformation, which belongs to its affine;"
            f" got {mode!r}.",
            setting="affine",
        )
    return start.affine, start.field, "none"


def _resolved(settings: RegistrationSettings, network: SHMoAReg | None) -> RegistrationSettings:
    """Replace None in the settings by the values of the weights."""
    config = None if network is None else network.config
    size, diffeomorphic = settings.size, settings.diffeomorphic
    if size is None:
        size = SIZE if config is None else config.size
    if diffeomorphic is None:
        diffeomorphic = config is None or config.diffeomorphic
    return replace(settings, size=size, diffeomorphic=diffeomorphic)


def _settings(
    settings: RegistrationSettings,
    device: torch.device,
    network: SHMoAReg | None,
    passes: list[float],
) -> dict[str, Any]:
    """Return the settings with their resolved values, for `Registration.settings`."""
    config = {} if network is None else network.config.to_dict()
    untrained = network is not None and network.untrained
    return {
        **settings.to_dict(),
        "device": str(device),
        "network": config,
        "passes": passes,
        "untrained": untrained,
    }


def _compare(
    pair: VolumePair, stages: dict[str, Transform], keep: str, out: Collection[str]
) -> tuple[dict[str, Similarity | None], str, str]:
    """Return the similarity at every stage and "after", the stage to keep, and the reason.

    The stages `out` are measured but not kept: they leave out a part of an initial transform.
    """
    found = {"before": compare_images(pair, stages["before"])}
    for name, stage in stages.items():
        is_identity = stage.field is None and np.array_equal(stage.affine, np.eye(4))
        found[name] = found["before"] if is_identity else compare_images(pair, stage)
    options = {name: value for name, value in found.items() if name not in out}
    kept, why = choose_stage(options, keep)
    return found | {"after": found[kept]}, kept, why


def _on_grid(transform: Transform, conformed: Conformed) -> Transform:
    """Add a field of zeros on the network grid to a transform without a field."""
    if transform.field is not None:
        return transform
    zero = conformed.transform(torch.zeros((1, 3, *conformed.grid.shape)))
    return replace(zero, affine=transform.affine)


@contextmanager
def _phase(
    seconds: dict[str, float], progress: ProgressCallback | None, name: str
) -> Iterator[Callable[[float], None]]:
    """Report and time a phase; yields a callback for the fraction done."""
    begin = time.perf_counter()
    if progress is not None:
        progress(name, 0.0)
    yield (lambda fraction: None) if progress is None else partial(progress, name)
    seconds[name] = time.perf_counter() - begin
    if progress is not None:
        progress(name, 1.0)
