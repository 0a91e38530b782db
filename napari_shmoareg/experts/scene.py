"""Everything of a registration that can be looked at, live or read back from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.experts.maps import (
    ExpertMap,
    GateValues,
    TokenLoad,
    expert_maps,
    gate_values,
    times_chosen,
    token_loads,
)
from napari_shmoareg.geometry import DisplacementField, Grid, Transform, Volume, VolumePair

if TYPE_CHECKING:
    from napari_shmoareg.registration.register import Registration


@dataclass(frozen=True, eq=False)
class Scene:
    """What a viewer is handed.

    Attributes
    ----------
    pair : VolumePair
        Moving and fixed, with labels if there are any.
    warped, warped_labels : Volume
        On the fixed image's grid; no labels where there were none.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    transform : Transform
        T(x) = A(x + d(x)), fixed world to moving world.
    jacobian : Volume
        Of the deformation without the affine, on the fixed grid.
    expert_maps : list of ExpertMap
        The decoder's choices, one per layer and direction, on the cells' own grids.
    token_loads : list of TokenLoad
        The weight of each attention head at each token, per block and image.
    times_chosen : list of TokenLoad
        In how many blocks of a layer each token chose each head.
    report : mapping
        As in report.json: settings, choices, similarity, Dice, surface distances, folding, loads.
    weights : str
        Name of the weights.
    registration : Registration or None
        Where the scene comes from; None for one read from a folder.
    folder : Path or None
        Where it lies; None for one that was not written.
    gates : list of GateValues
        What every gate gave every expert, in the order of the forward; empty for a folder written
        before these were kept.  In a folder those of the decoder are rounded to 1/65535: what was
        chosen stands in `expert_maps` and `token_loads`.
    """

    pair: VolumePair
    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    transform: Transform
    jacobian: Volume
    expert_maps: list[ExpertMap]
    token_loads: list[TokenLoad]
    times_chosen: list[TokenLoad]
    report: Mapping[str, Any] = field(repr=False)
    weights: str = ""
    registration: Registration | None = None
    folder: Path | None = None
    gates: list[GateValues] = field(default_factory=list)

    @classmethod
    def of(cls, registration: Registration, report: Mapping[str, Any], *, weights: str) -> Scene:
        """Of a registration that was just made, and its report (`build_report`)."""
        return cls(
            pair=registration.pair,
            warped=registration.warped,
            warped_labels=registration.warped_labels,
            displacement=registration.displacement,
            transform=registration.transform,
            jacobian=registration.jacobian,
            expert_maps=expert_maps(registration),
            token_loads=token_loads(registration),
            times_chosen=times_chosen(registration),
            report=report,
            weights=weights,
            registration=registration,
            gates=gate_values(registration),
        )

    @property
    def deformation(self) -> DisplacementField:
        """The deformation without the affine on the fixed grid, mm RAS: A^-1(T(x)) - x.  Computed
        at each call.
        """
        return self.displacement.after(np.linalg.inv(self.transform.affine).astype(np.float64))

    @property
    def network_grid(self) -> Grid:
        """Where the network worked, in the fixed world."""
        if self.registration is not None:
            return self.registration.network_grid
        i, j, k = self.report["network_grid"]["shape"]
        return Grid((i, j, k), np.array(self.report["network_grid"]["affine"], dtype=np.float64))

    @property
    def kernels(self) -> list[int]:
        """Sizes of the decoder experts' convolutions, in the order of their ids."""
        return list(self.report["settings"]["network"]["kernels"])

    @property
    def affine(self) -> NDArray[np.float64]:
        """A: fixed world to moving world, (4, 4), mm RAS."""
        return self.transform.affine
