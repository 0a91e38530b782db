"""What gates decided at places, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari_shmoareg.widgets.experts.place.pin_charts import Choice, Group
from napari_shmoareg.widgets.experts.place.pins import PINS
from napari_shmoareg.widgets.experts.place.strips import gate_name, short

if TYPE_CHECKING:
    from napari_shmoareg.analysis.place_reading import PlaceReading
    from napari_shmoareg.analysis.scene import Scene

Numbered = Sequence[tuple[int, "PlaceReading"]]  # numbers of pins from 1


def rows_of(scene: Scene, readings: Numbered) -> list[dict[str, object]]:
    """One row per pin, gate and expert that the pin's cell chose, or whose value the gate kept.

    Values are those of the files: nothing is rounded.  Empty is what is not known, or not chosen.
    """
    rows: list[dict[str, object]] = []
    for number, reading in readings:
        for cell in reading.cells:
            weights = dict(zip(cell.experts, cell.weights, strict=True))
            for expert in range(cell.num_experts):
                value = None if cell.values is None else cell.values[expert]
                if value is None and expert not in weights:
                    continue
                weight = weights.get(expert)
                rows.append(
                    {
                        "pair": f"{scene.pair.moving.name} onto {scene.pair.fixed.name}",
                        "weights": scene.weights,
                        "pin": number,
                        **dict(zip(("r_mm", "a_mm", "s_mm"), reading.point.tolist(), strict=True)),
                        **cell.place._asdict(),
                        "stride": cell.stride,
                        **dict(zip(("cell_i", "cell_j", "cell_k"), cell.cell, strict=True)),
                        "expert": expert,
                        "rank": cell.experts.index(expert) + 1 if expert in weights else None,
                        "weight": None if weight is None or weight != weight else weight,
                        "gate_value": value,
                        "entropy": cell.entropy,
                        "margin": cell.margin,
                    }
                )
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows]


def groups_of(readings: Numbered, layer: int, image: str, block: int | None) -> list[Group]:
    """Per pin the weight of every head in a block (Eq. 4), or in which share of the blocks it was chosen.  Fig. 6(a).

    Parameters
    ----------
    readings : sequence of (number, PlaceReading)
    layer : int
    image : {"moving", "fixed"}
    block : int or None
        None: over all blocks of the layer.
    """
    groups = []
    for number, reading in readings:
        cells = reading.select(part="encoder", layer=layer, image=image)
        if block is not None:
            cells = tuple(cell for cell in cells if cell.place.block == block)
        values = [0.0] * max((cell.num_experts for cell in cells), default=0)
        for cell in cells:
            for head, weight in zip(cell.experts, cell.weights, strict=True):
                values[head] += 1 / len(cells) if block is None else weight
        groups.append(Group(f"Pin {number}", PINS[number - 1], tuple(values)))
    return groups


def choices_of(scene: Scene, readings: Numbered) -> tuple[list[str], dict[tuple[int, int], Choice]]:
    """The directions of all decoder layers, and what each pin chose there.  Fig. 6(b)."""
    from napari_shmoareg.analysis.expert_palette import expert_colours
    from napari_shmoareg.widgets.layers import RESOLUTIONS, expert_names

    columns: list[str] = []
    choices: dict[tuple[int, int], Choice] = {}
    for row, (number, reading) in enumerate(readings):
        for cell in reading.decoder:
            heading = f"{cell.place.direction} {RESOLUTIONS.get(cell.stride, f'1/{cell.stride}')}"
            if heading not in columns:
                columns.append(heading)
            first, count = cell.experts[0], cell.num_experts
            name, value = expert_names(scene, count)[first], None if cell.values is None else cell.values[first]
            told = "" if value is None else f", {value:.3f} by the gate, margin {cell.margin:.3f}"
            says = f"Pin {number}, {gate_name(cell.place)}: {name}{told}"
            text = name if value is None else f"{name.partition('×')[0]}³ {short(value)}"
            choices[row, columns.index(heading)] = Choice(expert_colours(count)[first], text, says)
    return columns, choices
