"""Remakes Fig. 4, 5 and 6 of the paper for one pair, with shipped weights: experts-fig4.png,
-fig5.png, -fig6.png.

    python resources/make_expert_figures.py MOVING FIXED [--labels MOVING_LABELS FIXED_LABELS]
    [--out FOLDER]

Prints the captions. For many pairs: `shmoareg inspect --pairs LIST.csv`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.location import (
    BOUNDARY,
    CENTRE,
    LocationLoad,
    boundary_location,
    five_locations,
)
from napari_shmoareg.figures.experts import (
    CAUTION,
    expert_map_figure,
    load_caption,
    load_figure,
    location_caption,
    location_figure,
)
from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import load_network, read_pair
from napari_shmoareg.io.files import write_figure
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.model_card import routing_of
from napari_shmoareg.registration.register import register

MAPS = (
    "The expert that each voxel of the decoder chose, per direction of the displacement (columns)"
    " and resolution (rows), on the map's own grid, beside the warped image; an axial plane, the"
    " patient's right on the right."
)


def main() -> None:
    """Read the arguments, register, draw."""
    reading = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reading.add_argument("moving")
    reading.add_argument("fixed")
    reading.add_argument(
        "--labels", nargs=2, metavar=("MOVING_LABELS", "FIXED_LABELS"), default=(None, None)
    )
    reading.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    reading.add_argument("--weights", default="small")
    arguments = reading.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pair, network = (
        read_pair(arguments.moving, arguments.fixed, *arguments.labels),
        load_network(arguments.weights),
    )
    registration = register(pair, network)
    kernels, passes = network.config.kernels, [len(registration.settings["passes"])]
    places, told = _places(pair.fixed, pair.fixed_labels)
    load, at = ExpertLoad.of(registration.routing), LocationLoad.of(registration, places)
    voxel = BOUNDARY if BOUNDARY in places else CENTRE
    tokens = [name for name in places if name != BOUNDARY]
    routing = routing_of(arguments.weights) or ""
    captions = {
        "4": MAPS,
        "5": load_caption(load, 1, passes, routing),
        "6": location_caption(
            at, 1, given=False, voxel=voxel, detail=told, passes=passes, routing=routing
        ),
    }
    figures = {
        "4": expert_map_figure(registration, kernels=kernels),
        "5": load_figure(load, caption=captions["5"]),
        "6": location_figure(
            at, tokens=tokens, voxel=voxel, kernels=kernels, caption=captions["6"]
        ),
    }
    about = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": arguments.weights,
        "Pair": f"moving {pair.moving.name}, fixed {pair.fixed.name}",
        "Settings": json.dumps(registration.settings, default=str),
    }
    for number, figure in figures.items():
        path = arguments.out / f"experts-fig{number}.png"
        write_figure(
            figure, path, {"Title": f"as Fig. {number}", "Caption": captions[number], **about}
        )
        print(f"{path}\n{captions[number]}\n")
    print(CAUTION)


def _places(fixed: Volume, labels: Volume | None) -> tuple[dict, str]:
    """The five places, the boundary where there are labels, and which labels meet there."""
    places = dict(five_locations(fixed))
    found = None if labels is None else boundary_location(labels, places[CENTRE])
    if found is None:
        return places, ""
    return places | {BOUNDARY: found.point}, f" (labels {found.labels[0]} and {found.labels[1]})"


if __name__ == "__main__":
    main()
