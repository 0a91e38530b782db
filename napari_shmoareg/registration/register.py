"""register(): a pair in, a Registration out; which stage is kept, and what to be cautious about."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.geometry import DisplacementField, Grid, Transform, Volume, VolumePair
from napari_shmoareg.model import RoutingTrace, SHMoAReg
from napari_shmoareg.registration.affine import Alignment, align
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.registration.contrast import match_contrast
from napari_shmoareg.registration.deforming import (
    carry,
    refine_conformed,
    run_network,
)
from napari_shmoareg.registration.intensity import background_of
from napari_shmoareg.registration.refinement import smoothed
from napari_shmoareg.registration.resources import (
    check_images_memory,
    check_network_memory,
    find_device,
)
from napari_shmoareg.registration.similarity import Similarity
from napari_shmoareg.registration.similarity import similarity as alikeness
from napari_shmoareg.settings import RegistrationSettings

STAGES = ("before", "affine", "network", "refined")
MUCH_FOLDING = 1.0  # percent of voxels
MARGIN = 0.01  # of what the best stage leaves unexplained, by which a later stage has to be better
AGREED = 0.8  # score above which images agree but for noise and interpolation
TRUST = 0.1  # by which the network has to agree better than the refinement, to be kept before it
MOVED = 0.35  # of what is left unexplained, that moving such images has to explain
NOTABLE = 0.01  # change of a similarity that is news
LOST = 0.05  # coverage lost from before to after that is news
LITTLE = 0.15  # score below which images hardly agree at all


def choose_stage(
    similarity: Mapping[str, Similarity | None], keep: str = "best"
) -> tuple[str, str]:
    """The stage under which the images agree best, and why.

    Ours: the score of `Similarity` (mutual information, local correlation and coverage) decides; a
    later stage has to be better than an earlier one by more than 1 % of what is left to explain.
    Images that agree already by their headers, but for noise and interpolation (a score above 0.8),
    are left alone unless a third of that is explained: a deformation can always fit some noise.
    For the same reason the refinement, which is smoother, is kept before the network's rougher
    deformation unless it agrees less by 0.1: on brains and hippocampi it brought the higher Dice
    with the lower score.

    Parameters
    ----------
    similarity : mapping of str to Similarity or None
        Of some of `STAGES`; None where the images did not meet.
    keep : {"best", "last"}
        "last" takes the last stage whatever it did.
    """
    scores = {
        stage: 0.0 if (found := similarity[stage]) is None else found.score
        for stage in STAGES
        if stage in similarity
    }
    judged = dict(scores)
    if "network" in judged and judged["network"] < judged.get("refined", -1.0) + TRUST:
        del judged["network"]
    best = max(judged.values())
    kept = next(stage for stage, score in judged.items() if score >= best - MARGIN * (1 - best))
    first, score = next(iter(scores.items()))
    if score > AGREED and best - score < MOVED * (1 - score):
        kept = first
    numbers = ", ".join(f"{score:.3f} {stage}" for stage, score in scores.items())
    if keep == "last":
        last = list(scores)[-1]
        return last, f"{last}, as requested (agreement {numbers}; {kept} agrees best)"
    return kept, f"{kept}, by image agreement ({numbers})"


def cautions(
    similarity: Mapping[str, Similarity | None],
    kept: str,
    folding_percent: float,
    settings: Mapping[str, Any],
) -> list[str]:
    """In whole sentences; empty where nothing was noticed.

    Parameters
    ----------
    similarity, kept, folding_percent, settings
        Of a `Registration`.
    """
    found = []
    if settings.get("untrained"):
        found.append(
            "These weights are untrained: nothing is deformed, and what the experts chose means"
            " nothing."
        )
    last = next(stage for stage in reversed(STAGES) if stage in similarity)
    scores = {stage: s.score for stage in STAGES if (s := similarity.get(stage)) is not None}
    best = max(scores, key=lambda stage: scores[stage], default=last)
    allowed = TRUST if (best, last) == ("network", "refined") else NOTABLE
    if kept == last and scores.get(last, 0.0) < scores.get(best, 0.0) - allowed:
        found.append(
            f"The last stage made the images less alike: agreement {scores[best]:.3f} {best}, "
            f"{scores.get(last, 0.0):.3f} {last}. "
            + ("The weights may not fit such images: try" if "network" in similarity else "Try")
            + " another size, other weights, or to keep the best stage."
        )
    if kept != last and not settings.get("untrained") and scores.get(last, 0.0) != scores.get(kept):
        what = {
            "before": "The images were left as their headers have them",
            "affine": "Only the alignment was kept",
            "network": "The refinement was not kept",
        }[kept]
        why = (
            "nothing had to be moved"
            if scores.get(kept, 0.0) > AGREED
            else "try another size or other weights"
        )
        found.append(
            f"{what}: the images agree no better after the later stages (agreement"
            f" {scores.get(kept, 0.0):.3f} {kept}, {scores.get(last, 0.0):.3f} {last}); {why}."
        )
    before, after = similarity["before"], similarity["after"]
    if before is not None and after is not None and kept != "before":
        found += _against(before, after)
    if after is not None and after.score < LITTLE:
        found.append(
            f"The images hardly agree (mutual information {after.nmi:.3f}, local correlation"
            f" {after.local:.3f}): whether the result is right cannot be told from them. Check it"
            " in a viewer, or with labels or landmarks."
        )
    if folding_percent > MUCH_FOLDING:
        found.append(
            f"The deformation folds in {folding_percent:.2f} % of the voxels (jacobian.nii.gz shows"
            " where)" + ("." if settings["diffeomorphic"] else "; a diffeomorphic one folds less.")
        )
    return found


def _against(before: Similarity, after: Similarity) -> list[str]:
    """Where the result disagrees with the images as they came."""
    found = []
    if after.coverage < before.coverage - LOST:
        found.append(
            f"Less of the anatomy is compared than before ({100 * before.coverage:.0f} % to"
            f" {100 * after.coverage:.0f} % of it lies in both fields of view): the alignment may"
            " have shifted parts out of view. Compare the result with the images as they came."
        )
    shared, local = after.information - before.information, after.local - before.local
    if min(shared, local) < -NOTABLE and max(shared, local) > NOTABLE:
        found.append(
            "Whether the result is better than the images as they came cannot be told from them:"
            f" mutual information went from {before.information:.3f} to {after.information:.3f},"
            f" local correlation from {before.local:.3f} to {after.local:.3f}. Look at both, or"
            " give labels or landmarks."
        )
    return found


Progress = Callable[[str, float], None]

# voxels along the longest axis of the grid, without a network: as of the shipped weights
SIZE = 160
PHASES = ("align", "conform", "network", "refine", "measure", "warp")


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of `register`, or what its folder keeps of it (`read_registration`).

    Attributes
    ----------
    pair : VolumePair
        As given.
    transform : Transform
        Fixed world to moving world, T(x) = A(x + d(x)), mm RAS; d on the network grid.
    warped : Volume
        The moving image on the fixed image's own grid, by one interpolation of the original;
        float32.
    warped_labels : Volume or None
        The moving labels likewise, nearest neighbour, their dtype; None without such.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    jacobian : Volume
        det(I + dd/dx) of the deformation alone (without the affine), on the fixed grid; 0 or less
        is folding.
    routing : RoutingTrace
        What every gate chose in the last pass (see `cascade`), detached, on the CPU; empty without
        a network.  From a folder the decoder's gate values are in steps of 1/65535, and NaN where
        the folder was written before gate values were kept.
    network_grid : Grid
        Where network and refinement worked, in the fixed world.
    alignment : Alignment
        The affine, and why it is what it is.
    similarity : dict of Similarity or None
        "before" (the headers alone), "affine", "after" (as kept); "network" and "refined" where
        these ran (not from a folder).  None where the images did not meet.
    kept : {"before", "affine", "network", "refined"}
        Which stage the transform is of: the one under which the images agree best (see
        `choose_stage`).
    choices : dict of str
        What was decided for the caller, and why: "affine", "contrast", "kept" and, with refinement,
        "similarity" and "refinement".
    seconds : dict of float
        Per phase.
    settings : dict
        What was asked for and what it came to; plain values.
    weights : str
        Name of the weights; empty where it was not said.
    report : mapping
        As in report.json (`build_report`); empty where none was made.
    folder : Path or None
        Where it was read from.
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
        """The deformation without the affine on the fixed grid, mm RAS: A^-1(T(x)) - x.  Computed
        at each call.
        """
        return self.displacement.after(np.linalg.inv(self.affine).astype(np.float64))

    @property
    def kernels(self) -> list[int]:
        """Sizes of the decoder experts' convolutions, in the order of their ids."""
        return list(self.settings["network"]["kernels"])

    @property
    def folding_percent(self) -> float:
        """Share of the fixed grid's voxels, in percent, whose Jacobian is 0 or less."""
        return 100 * float((self.jacobian.values <= 0).mean())

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the result; empty where nothing was noticed."""
        if self.folder is not None:
            return list(self.report["warnings"])
        return cautions(self.similarity, self.kept, self.folding_percent, self.settings)


def register(
    pair: VolumePair,
    network: SHMoAReg | None,
    settings: RegistrationSettings | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Registration:
    """Register the moving image of a pair onto the fixed one.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view.
    network : SHMoAReg or None
        Is moved to the device and stays there.  None: alignment and, with `refine`, refinement
        only.
    settings : RegistrationSettings, optional
        By default its defaults.
    progress : callable or None
        Called with a phase ("align", "conform", "network", "refine", "measure", "warp") and a
        fraction of it; what it raises ends the work and comes out here.
    **options
        Fields of `RegistrationSettings`, instead of those of `settings`: ``refine=60``.

    Returns
    -------
    Registration

    Raises
    ------
    InputError
        If an image or an option is not what it has to be.
    NoOverlapError
        If the images do not meet after the alignment.
    TooLargeError
        If memory would not suffice.
    """
    settings = _decided(replace(settings or RegistrationSettings(), **options), network)
    config, where = None if network is None else network.config, find_device(settings.device)
    diffeomorphic = bool(settings.diffeomorphic)
    check_images_memory(pair.moving.grid, pair.fixed.grid)
    seconds: dict[str, float] = {}
    phase = partial(_phase, seconds, progress)
    with phase("align"):
        alignment = align(pair, settings.affine, progress=progress)
    with phase("conform"):
        conformed = conform(pair, size=settings.size or SIZE, affine=alignment.matrix)
        check_network_memory(
            config, conformed.grid, moving=pair.moving.grid, fixed=pair.fixed.grid, device=where
        )
        empty = background_of(pair.moving), background_of(pair.fixed)
        matched = match_contrast(
            conformed.moving, conformed.fixed, settings.contrast, backgrounds=empty
        )
        choices = {"affine": alignment.reason, "contrast": matched.reason}
        images = matched.moving, conformed.fixed
    routing, passes = RoutingTrace(()), list[float]()
    fields: dict[str, Tensor] = {}
    if network is not None:
        with phase("network") as told:
            found = run_network(
                network, *images, diffeomorphic=diffeomorphic, device=where, told=told
            )
            routing, passes = found.last.routing.detached(), list(found.passes)
            fields["network"] = smoothed(found.displacement, settings.smoothness)
    if settings.refine:
        with phase("refine") as told:
            fields["refined"], more = refine_conformed(
                conformed, images, empty, fields.get("network"), settings, where, told
            )
            choices |= more
    with phase("measure"):
        stages = {"before": Transform(np.eye(4)), "affine": Transform(alignment.matrix)}
        stages |= {name: conformed.transform(u) for name, u in fields.items()}
        alike, kept, choices["kept"] = _compare(pair, stages, settings.keep)
    transform = _on_grid(stages[kept], conformed)
    with phase("warp"):
        carried = carry(pair, transform)
        jacobian = carried.jacobian()
    return Registration(
        pair=pair,
        transform=transform,
        warped=carried.warped,
        warped_labels=carried.warped_labels,
        displacement=carried.displacement,
        jacobian=jacobian,
        routing=routing,
        network_grid=conformed.grid,
        alignment=alignment,
        similarity=alike,
        kept=kept,
        choices=choices,
        seconds=seconds,
        settings=_settings(settings, where, network, passes),
    )


def _decided(settings: RegistrationSettings, network: SHMoAReg | None) -> RegistrationSettings:
    """The settings with what the weights say, where these are asked."""
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
    """What was asked for, and what it came to."""
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
    pair: VolumePair, stages: dict[str, Transform], keep: str
) -> tuple[dict[str, Similarity | None], str, str]:
    """The similarity under every stage, and "after" as kept; the stage that is kept; and why."""
    alike = {"before": alikeness(pair, stages["before"])}
    for name, stage in stages.items():
        still = stage.field is None and np.array_equal(stage.affine, np.eye(4))
        alike[name] = alike["before"] if still else alikeness(pair, stage)
    kept, why = choose_stage(alike, keep)
    return alike | {"after": alike[kept]}, kept, why


def _on_grid(transform: Transform, conformed: Conformed) -> Transform:
    """A transform with a field on the network grid: one of zeros where it deforms nothing."""
    if transform.field is not None:
        return transform
    still = conformed.transform(torch.zeros((1, 3, *conformed.grid.shape)))
    return replace(still, affine=transform.affine)


@contextmanager
def _phase(
    seconds: dict[str, float], progress: Progress | None, name: str
) -> Iterator[Callable[[float], None]]:
    """Tell where the work is, and keep the time; yields how to tell the fraction that is done."""
    begin = time.perf_counter()
    if progress is not None:
        progress(name, 0.0)
    yield (lambda fraction: None) if progress is None else partial(progress, name)
    seconds[name] = time.perf_counter() - begin
    if progress is not None:
        progress(name, 1.0)
