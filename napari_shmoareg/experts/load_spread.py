"""How much the loads of single pairs differ."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.model.routing import GateId


def share_spread(loads: Sequence[ExpertLoad]) -> dict[GateId, NDArray[np.float64]]:
    """Standard deviation (n - 1) over pairs of each pair's own share of selections, (N,) per gate.

    A gate that fewer than two of the loads have is left out: one pair has no spread.

    Parameters
    ----------
    loads : sequence of ExpertLoad
        One per pair, of the same network.
    """
    shares: dict[GateId, list[NDArray[np.float64]]] = {}
    for load in loads:
        for gate, share in load.share.items():
            shares.setdefault(gate, []).append(share)
    return {gate: np.std(found, axis=0, ddof=1) for gate, found in shares.items() if len(found) > 1}


def repeated(names: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Where a name stands that came before: (first time, this time), from 1.

    A pair that counts twice weighs twice in a load, and makes the spread over pairs look smaller
    than it is."""
    first: dict[Hashable, int] = {}
    return [(first[n], at) for at, n in enumerate(names, start=1) if first.setdefault(n, at) != at]
