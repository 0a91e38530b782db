"""What the pairs of `inspect --pairs` come to: tables, figures, captions, summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.analysis.expert_figures import load_figure
from napari_shmoareg.analysis.expert_load import ExpertLoad, Place
from napari_shmoareg.analysis.load_captions import CAUTION, load_caption, place_caption
from napari_shmoareg.analysis.load_spread import repeated, share_spread
from napari_shmoareg.analysis.place_figure import place_figure
from napari_shmoareg.analysis.place_load import BOUNDARY, CENTRE, FRACTIONS, PlaceLoad, detailed_rows
from napari_shmoareg.cli.inspect_folder import InspectedPair, write_json
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.figure_files import ENDINGS, write_figure
from napari_shmoareg.io.tables import write_table
from napari_shmoareg.io.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOADS, PER_PAIR, PLACES = "loads.csv", "loads_per_pair.csv", "places.csv"
SUMMARY, CAPTIONS = "summary.json", "captions.md"


def write_results(
    out: Path,
    plan: Mapping[str, Any],
    pairs: Mapping[int, InspectedPair],
    failures: Mapping[int, str],
    network: Mapping[str, Any],
    routing: str = "",
) -> ExpertLoad:
    """Write tables, figures, captions and summary of the pairs that are done.

    Parameters
    ----------
    out : Path
    plan : mapping
        As the folder was begun with.
    pairs, failures : mappings by number, from 0
        At least one pair.
    network : mapping
        Its config.
    routing : str
        What the card of the weights says of their routing (`routing_sentence`).

    Returns
    -------
    ExpertLoad
        Of all pairs added up.
    """
    done = list(pairs.values())
    load, places = reduce(add, [p.load for p in done]), reduce(add, [p.places for p in done])
    spread = share_spread([p.load for p in done])
    write_table(_with_spread(load, spread), out / LOADS)
    named = [({"pair": n + 1, "moving": p.moving, "fixed": p.fixed}, p.load) for n, p in pairs.items()]
    write_table([who | row for who, found in named for row in detailed_rows(found)], out / PER_PAIR)
    write_table(places.rows(), out / PLACES)
    captions: dict[str, str] = {}
    if len(load):
        captions, figures = _figures(load, places, spread, done, network, routing)
        _write_figures(out, figures, captions, plan, done)
    summary = {"weights": plan["weights"], "settings": plan["settings"], "network": network, "versions": versions()}
    summary |= {"pairs_listed": len(plan["pairs"]), "pairs_done": len(done)}
    summary["pairs"] = [{"pair": n + 1} | p.told() for n, p in pairs.items()]
    summary["failed"] = [{"pair": n + 1, "files": plan["pairs"][n], "error": e} for n, e in failures.items()]
    write_json(summary | {"captions": captions, "caution": CAUTION, "routing": routing}, out / SUMMARY)
    with writing(out / CAPTIONS) as temporary:
        temporary.write_text(_captions(captions, plan, done, failures), encoding="utf-8")
    return load


def _figures(
    load: ExpertLoad,
    places: PlaceLoad,
    spread: Mapping[Place, np.ndarray],
    done: Sequence[InspectedPair],
    network: Mapping[str, Any],
    routing: str,
) -> tuple[dict[str, str], dict[str, Figure]]:
    """Fig. 5 and 6, and what they show."""
    passes, kernels = [len(pair.about["passes"]) for pair in done], network["kernels"]
    given = not set(FRACTIONS) <= set(places)
    tokens = [name for name in places if name != BOUNDARY]
    voxel = tokens[0] if given else BOUNDARY if BOUNDARY in places else CENTRE
    captions = {
        "expert_loads": load_caption(load, len(done), passes, routing),
        "expert_places": place_caption(
            places,
            len(done),
            given=given,
            voxel=voxel,
            told=_meeting(done) if voxel == BOUNDARY else "",
            passes=passes,
            routing=routing,
        ),
    }
    return captions, {
        "expert_loads": load_figure(load, spread=spread, caption=captions["expert_loads"]),
        "expert_places": place_figure(
            places, tokens=tokens, voxel=voxel, kernels=kernels, caption=captions["expert_places"]
        ),
    }


def _write_figures(
    out: Path, figures: Mapping[str, Figure], captions: Mapping[str, str], plan: Mapping[str, Any], done: Sequence[Any]
) -> None:
    about = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": f"{plan['weights']['name']} (SHA-256 {plan['weights']['sha256']})",
        "Pairs": f"{len(done)}, moving to fixed: " + "; ".join(f"{p.moving} to {p.fixed}" for p in done),
        "Settings": json.dumps(plan["settings"]),
    }
    for name, figure in figures.items():
        for ending in ENDINGS:
            with writing(out / f"{name}{ending}") as temporary:
                title = {"Title": name.replace("_", " "), "Caption": captions[name]}
                write_figure(figure, temporary, title | about)


def _with_spread(load: ExpertLoad, spread: Mapping[Place, np.ndarray]) -> list[dict[str, object]]:
    """Rows of the sum, each with the standard deviation over pairs of the share of selections."""
    gates = [(gate, expert) for gate, counts in load.counts.items() for expert in range(len(counts))]
    return [
        row | {"share_sd_over_pairs": float(spread[gate][expert]) if gate in spread else ""}
        for (gate, expert), row in zip(gates, detailed_rows(load), strict=True)
    ]


def _meeting(done: Sequence[InspectedPair]) -> str:
    """Which labels meet at the boundary, and in how many pairs."""
    labels = {tuple(sorted(p.boundary)) for p in done if p.boundary is not None}
    having = sum(p.boundary is not None for p in done)
    told = f" (labels {' and '.join(map(str, next(iter(labels))))})" if len(labels) == 1 else ""
    told = told or f" (other labels from pair to pair: see {SUMMARY})"
    return told + (f", in the {having} of {len(done)} pairs that have such a boundary" if having < len(done) else "")


def _captions(
    captions: Mapping[str, str], plan: Mapping[str, Any], done: Sequence[Any], failures: Mapping[int, str]
) -> str:
    titles = {"expert_loads": "Fig. 5: load of each expert", "expert_places": "Fig. 6: load at single places"}
    parts = ["# Which experts were chosen"]
    parts += [f"## {titles[name]} ({name}.png, {name}.svg)\n\n{text}" for name, text in captions.items()]
    if not captions:
        parts += ["This network has no experts: neither a mixture of attention heads nor of deformations."]
    parts += [f"## What a load is not\n\n{CAUTION}"]
    weights, settings = plan["weights"], ", ".join(f"{k} {v}" for k, v in plan["settings"].items() if v is not None)
    parts += [f"## How\n\n{len(done)} of {len(plan['pairs'])} listed pairs (in {SUMMARY}); weights {weights['name']}, "]
    parts[-1] += f"SHA-256 {weights['sha256']}; {settings}."
    again = repeated(tuple(files[:2]) for files in plan["pairs"])
    if again:
        parts[-1] += f" Listed more than once: {', '.join(f'pair {n} (as {number})' for n, number in again)}; each "
        parts[-1] += "time counts, so that the spread over pairs comes out too small."
    if failures:
        told = "\n".join(f"- pair {n + 1}: {error}" for n, error in failures.items())
        parts += [f"## Failed, and not counted\n\n{told}\n\nThe same command tries these again."]
    return "\n\n".join(parts) + "\n"
