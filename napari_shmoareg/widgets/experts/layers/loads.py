"""What the bars of the Layers view are of: the load of a registration, in rows and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_shmoareg.widgets.experts.layers.bar_drawing import Bar
from napari_shmoareg.widgets.layers import RESOLUTIONS, expert_names

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
    from napari_shmoareg.analysis.scene import Scene

ACTS = {
    "weights": "Click: show what it weighs at every token",
    "times": "Click: show in how many blocks each token chose it",
    "decoder": "Click: show the cells that chose it; once more: those of all experts",
}


@dataclass(frozen=True)
class BarSet:
    """One chart: a block of an encoder layer (or all its blocks), or a direction of a decoder layer."""

    title: str
    spoken: str
    bars: list[Bar]


@dataclass(frozen=True)
class LayerRow:
    """The charts of one layer, and the share at the upper edge of all charts of its part of the network."""

    title: str
    highest: float
    charts: list[BarSet]


def load_of(scene: Scene) -> ExpertLoad:
    """The load of a registration, as its report tells it; empty for a network without experts."""
    from napari_shmoareg.analysis.expert_load import ExpertLoad, Place

    entries = {Place(*(e[field] for field in Place._fields)): e for e in scene.report.get("expert_loads") or ()}
    counts = {place: np.array(entry["counts"], dtype=np.int64) for place, entry in entries.items()}
    return ExpertLoad(counts, {place: int(entry["cells"]) for place, entry in entries.items()})


def rows_of(scene: Scene) -> list[LayerRow]:
    """The encoder's layers with their blocks, then the decoder's with their directions.  Fig. 5."""
    load = load_of(scene)
    rows = []
    for part in ("encoder", "decoder"):
        of_part = load.select(part=part)
        whole = of_part.over_blocks() if part == "encoder" else of_part
        shares = {**whole.share, **of_part.share}.values()
        highest = max((float(share.max()) for share in shares), default=0.0) or 1.0
        for layer in sorted({place.layer for place in of_part}):
            charts = _charts(scene, of_part.select(layer=layer), whole.select(layer=layer))
            title = f"{part.capitalize()} layer {layer}{_resolution(scene, part, layer)}"
            rows.append(LayerRow(title, highest, charts))
    return rows


def _charts(scene: Scene, load: ExpertLoad, whole: ExpertLoad) -> list[BarSet]:
    """Of one layer."""
    sets: dict[str, list[Place]] = {}
    for place in sorted(load, key=lambda p: (p.block or 0, p.direction or "")):
        sets.setdefault(place.direction or f"block {place.block}", []).append(place)
    blocks = len(sets)
    charts = [_chart(scene, load, title, places, 1) for title, places in sets.items()]
    if blocks > 1 and next(iter(whole)).part == "encoder":
        charts.append(_chart(scene, whole, "all blocks", list(whole), blocks))
    return charts


def _chart(scene: Scene, load: ExpertLoad, title: str, places: list[Place], blocks: int) -> BarSet:
    """Bars by expert; of each expert moving before fixed."""
    from napari_shmoareg.analysis.expert_palette import IMAGE_COLOURS, expert_colours

    places = sorted(places, key=lambda p: list(IMAGE_COLOURS).index(p.image) if p.image in IMAGE_COLOURS else 0)
    share, bars = load.share, []
    count = len(share[places[0]])
    names = expert_names(scene, count)
    for expert in range(count):
        for place in places:
            colour = IMAGE_COLOURS[place.image] if place.image in IMAGE_COLOURS else expert_colours(count)[expert]
            mark = str(expert) if place.part == "encoder" else names[expert]
            says = _says(load, place, expert, names[expert], blocks)
            bars.append(Bar(place, expert, float(share[place][expert]), colour, mark, says))
    first = places[0]
    where = f"{first.part} layer {first.layer}, " + (f"direction {title}" if first.direction else title)
    return BarSet(title, f"Load of {where}: shares of {count} experts", bars)


def _says(load: ExpertLoad, place: Place, expert: int, name: str, blocks: int) -> str:
    """The exact figures behind a bar, and what a click does."""
    count, total, cells = int(load.counts[place][expert]), int(load.counts[place].sum()), load.cells[place]
    where, chose = f"{place.part} layer {place.layer}", total // max(cells, 1)
    if place.part == "decoder":
        who, what, act = f"Expert {expert} ({name}) of {where}, direction {place.direction}", "cells", "decoder"
    else:
        block = "all blocks" if place.block is None else f"block {place.block}"
        who, what = f"Head {expert} of {where}, {block}, {place.image} image", "tokens"
        act = "times" if place.block is None else "weights"
    each = f"{cells:,} {what}, each chose {chose} of {len(load.counts[place])}"
    if blocks > 1:
        each = f"{cells // blocks:,} {what}, each chose {chose} of {len(load.counts[place])} in each of {blocks} blocks"
    share = f"{100 * load.share[place][expert]:.2f} % of selections: {count:,} of {total:,}"
    return "\n".join((who, share, f"{each} (equal shares: {100 / len(load.counts[place]):.2f} %)", ACTS[act]))


def _resolution(scene: Scene, part: str, layer: int) -> str:
    """Of which resolution the cells of a layer are, where its maps tell."""
    maps = scene.expert_maps if part == "decoder" else scene.token_loads
    stride = next((one.stride for one in maps if one.place.layer == layer), None)
    return "" if stride is None else f" ({RESOLUTIONS.get(stride, f'1/{stride}')} resolution)"
