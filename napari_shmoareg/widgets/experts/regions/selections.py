"""How often each expert of some gates was chosen, as the report of a registration has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.widgets.layers import expert_names

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene


def selections(scene: Scene, **where: object) -> NDArray[np.float64] | None:
    """Share of selections (N,) of the gates with these fields of `Place`; None where there is no such gate."""
    entries = scene.report.get("expert_loads", [])
    counts = [entry["counts"] for entry in entries if all(entry[name] == value for name, value in where.items())]
    if not counts or len({len(count) for count in counts}) > 1:
        return None
    total = np.sum(counts, axis=0, dtype=np.float64)
    return np.asarray(total / max(total.sum(), 1.0))


def called(scene: Scene, part: str, count: int) -> list[str]:
    """What the experts of the encoder or decoder are called, by id, with the id."""
    if part == "encoder":
        return [f"head {n}" for n in range(count)]
    return [
        name if name.startswith("expert") else f"{name} (id {n})" for n, name in enumerate(expert_names(scene, count))
    ]
