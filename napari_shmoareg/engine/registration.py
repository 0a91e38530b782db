"""register(): a pair in, a registration out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.engine.affine import Alignment, align
from napari_shmoareg.engine.carrying import carry
from napari_shmoareg.engine.cautions import cautions, check_keep, choose_stage
from napari_shmoareg.engine.conform import Conformed, check_size, conform
from napari_shmoareg.engine.contrast import check_mode, match_contrast
from napari_shmoareg.engine.deforming import (
    check_refinement,
    check_smoothness,
    refine_conformed,
    run_network,
)
from napari_shmoareg.engine.device import find_device
from napari_shmoareg.engine.intensity import background_of
from napari_shmoareg.engine.memory import check_images_memory, check_network_memory
from napari_shmoareg.engine.refinement import DEFAULT_SMOOTHNESS, smoothed
from napari_shmoareg.engine.similarity import Similarity
from napari_shmoareg.engine.similarity import similarity as alikeness
from napari_shmoareg.geometry import DisplacementField, Grid, Transform, Volume, VolumePair
from napari_shmoareg.model import RoutingTrace, SHMoAReg

Progress = Callable[[str, float], None]

SIZE = 160  # voxels along the longest axis of the grid, without a network: as of the shipped weights
PHASES = ("align", "conform", "network", "refine", "measure", "warp")


@dataclass(frozen=True, eq=False)
class Registration:
    """The result: what widgets and exports are handed.

    Attributes
    ----------
    pair : VolumePair
        As given.
    transform : Transform
        Fixed world to moving world, T(x) = A(x + d(x)), mm RAS; d on the network grid.
    warped : Volume
        The moving image on the fixed image's own grid, by one interpolation of the original; float32.
    warped_labels : Volume or None
        The moving labels likewise, nearest neighbour, their dtype; None without such.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    jacobian : Volume
        det(I + dd/dx) of the deformation alone (without the affine), on the fixed grid; 0 or less is folding.
    routing : RoutingTrace
        What every gate chose in the last pass (see `cascade`), detached, on the CPU; empty without a network.
    network_grid : Grid
        Where network and refinement worked, in the fixed world.
    alignment : Alignment
        The affine, and why it is what it is.
    similarity : dict of Similarity or None
        "before" (the headers alone), "affine", "after" (as kept); "network" and "refined" where these ran.
        None where the images did not meet.
    kept : {"before", "affine", "network", "refined"}
        Which stage the transform is of: the one under which the images agree best (see `choose_stage`).
    choices : dict of str
        What was decided for the caller, and why: "affine", "contrast", "kept" and, with refinement,
        "similarity" and "refinement".
    seconds : dict of float
        Per phase.
    settings : dict
        What was asked for and what it came to; plain values.
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

    @property
    def folding_percent(self) -> float:
        """Share of the fixed grid's voxels, in percent, whose Jacobian is 0 or less."""
        return 100 * float((self.jacobian.values <= 0).mean())

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the result; empty where nothing was noticed."""
        return cautions(self.similarity, self.kept, self.folding_percent, self.settings)


def register(
    pair: VolumePair,
    network: SHMoAReg | None,
    *,
    affine: str = "auto",
    size: int | str | None = None,
    diffeomorphic: bool | None = None,
    device: str = "auto",
    refine: int = 0,
    similarity: str = "auto",
    contrast: str = "auto",
    smoothness: str = DEFAULT_SMOOTHNESS,
    keep: str = "best",
    refine_seconds: float | None = None,
    progress: Progress | None = None,
) -> Registration:
    """Register the moving image of a pair onto the fixed one.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view.
    network : SHMoAReg or None
        Is moved to the device and stays there.  None: alignment and, with `refine`, refinement only.
    affine : {"auto", "rigid", "affine", "none"}
        Alignment before the network (see `align`).
    size : int, "native" or None
        Voxels along the longest axis of the network grid (see `network_grid`); None takes
        what the weights are meant for, 160 without a network.
    diffeomorphic : bool or None
        None: as the network's config says; without a network, diffeomorphic.
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one.
    refine : int
        Steps of refinement on the pair itself, after the network (see `Refinement`); 0 for none.
    similarity : {"auto", "lncc", "mind"}
        What the refinement compares by; "auto" looks at the contrasts.
    contrast : {"auto", "keep", "match"}
        Whether the network sees the moving image in the fixed one's contrast (see `match_contrast`).
    smoothness : {"accurate", "balanced", "smooth"}
        Of the deformation: what is smoother overlaps a little less and folds less (see `SMOOTHNESS`).
    keep : {"best", "last"}
        "best": of the headers, the alignment, the network and the refinement, the one under which the images
        agree best (see `choose_stage`); "last": the last of them in any case.
    refine_seconds : float or None
        End the refinement after so many seconds; the result then depends on the machine's speed.
    progress : callable or None
        Called with a phase ("align", "conform", "network", "refine", "measure", "warp") and a fraction
        of it; what it raises ends the work and comes out here.

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
    config, where = None if network is None else network.config, find_device(device)
    size = size if size is not None else SIZE if config is None else config.size
    diffeomorphic = diffeomorphic if diffeomorphic is not None else config is None or config.diffeomorphic
    _check_options(size, contrast, refine, similarity, smoothness, keep)
    asked = {"affine": affine, "size": size, "diffeomorphic": diffeomorphic}
    asked |= {"refine": refine, "similarity": similarity, "contrast": contrast, "smoothness": smoothness, "keep": keep}
    check_images_memory(pair.moving.grid, pair.fixed.grid)
    seconds: dict[str, float] = {}
    phase = partial(_phase, seconds, progress)
    with phase("align"):
        alignment = align(pair, affine, progress=progress)
    with phase("conform"):
        conformed = conform(pair, size=size, affine=alignment.matrix)
        check_network_memory(config, conformed.grid, moving=pair.moving.grid, fixed=pair.fixed.grid, device=where)
        empty = background_of(pair.moving), background_of(pair.fixed)
        matched = match_contrast(conformed.moving, conformed.fixed, contrast, backgrounds=empty)
        choices = {"affine": alignment.reason, "contrast": matched.reason}
        images = matched.moving, conformed.fixed
    routing, passes = RoutingTrace(()), list[float]()
    fields: dict[str, Tensor] = {}
    if network is not None:
        with phase("network") as told:
            found = run_network(network, *images, diffeomorphic=diffeomorphic, device=where, told=told)
            routing, passes = found.last.routing.detached(), list(found.passes)
            fields["network"] = smoothed(found.displacement, smoothness)
    if refine:
        with phase("refine") as told:
            fields["refined"], more = refine_conformed(
                conformed, images, empty, fields.get("network"), asked, where, told, refine_seconds
            )
            choices |= more
    with phase("measure"):
        stages = {"before": Transform(np.eye(4)), "affine": Transform(alignment.matrix)}
        stages |= {name: conformed.transform(u) for name, u in fields.items()}
        alike, kept, choices["kept"] = _compare(pair, stages, keep)
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
        settings=_settings(asked, where, network, passes),
    )


def _settings(
    asked: dict[str, Any], device: torch.device, network: SHMoAReg | None, passes: list[float]
) -> dict[str, Any]:
    """What was asked for, and what it came to."""
    config = {} if network is None else network.config.to_dict()
    untrained = network is not None and network.untrained
    return {**asked, "device": str(device), "network": config, "passes": passes, "untrained": untrained}


def _check_options(size: int | str, contrast: str, refine: int, similarity: str, smoothness: str, keep: str) -> None:
    check_size(size)
    check_mode(contrast)
    check_refinement(refine, similarity)
    check_smoothness(smoothness)
    check_keep(keep)


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
def _phase(seconds: dict[str, float], progress: Progress | None, name: str) -> Iterator[Callable[[float], None]]:
    """Tell where the work is, and keep the time; yields how to tell the fraction that is done."""
    begin = time.perf_counter()
    if progress is not None:
        progress(name, 0.0)
    yield (lambda fraction: None) if progress is None else partial(progress, name)
    seconds[name] = time.perf_counter() - begin
    if progress is not None:
        progress(name, 1.0)
