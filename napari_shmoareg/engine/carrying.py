"""A pair carried through a transform onto the fixed grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_shmoareg.geometry import DisplacementField, Transform, Volume, VolumePair


@dataclass(frozen=True, eq=False)
class Carried:
    """The moving image and its labels where a transform puts them.

    Attributes
    ----------
    warped : Volume
        On the fixed grid, by one interpolation of the original; float32.
    warped_labels : Volume or None
        Likewise, nearest neighbour.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    deformation : DisplacementField
        The same without the affine: d(x).
    """

    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    deformation: DisplacementField

    def jacobian(self) -> Volume:
        """det(I + dd/dx) of the deformation, on the fixed grid; 0 or less is folding."""
        return Volume(self.deformation.jacobian(), self.deformation.grid, "jacobian")


def carry(pair: VolumePair, transform: Transform) -> Carried:
    """Carry the moving image of a pair, and its labels if it has them, onto the fixed image's grid."""
    grid = pair.fixed.grid
    deformation = Transform(np.eye(4), transform.field).total(grid)
    total = deformation.after(transform.affine)
    labels = None if pair.moving_labels is None else total.warp(pair.moving_labels)
    return Carried(total.warp(pair.moving), labels, total, deformation)
