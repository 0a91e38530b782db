"""A layer that shows how certain a gate was in every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_shmoareg.plugin.layers import FINER, LayerData, add_layers
from napari_shmoareg.plugin.placement import layer_options, tag
from napari_shmoareg.plugin.registrations import layers_of_registration, open_registrations
from napari_shmoareg.plugin.showing import refill, show_only

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.experts.maps import GateValues
    from napari_shmoareg.model.routing import GateId
    from napari_shmoareg.registration.register import Registration


Measure = Literal["entropy", "margin"]
# From sure to unsure: dark violet, blue-green, yellow (as viridis); distinct in greyscale too.
SURE_TO_UNSURE = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")


def show_gate(
    viewer: Viewer,
    number: int,
    gate: GateValues,
    measure: Measure = "entropy",
    *,
    stretched: bool = False,
) -> Image:
    """Show how certain a gate was in every cell, and hide the other maps.

    A registration has one such layer, made at the first call and then refilled in place.

    Parameters
    ----------
    viewer : Viewer
    number : int
        Number of an open registration.
    gate : GateValues
    measure, stretched
        As for `gate_map`.
    """
    layer = gate_layer(viewer, number)
    requested = (gate, measure, stretched)
    if (
        layer is None
        or tuple(tag(layer, name) for name in ("gate", "measure", "stretched")) != requested
    ):
        new = gate_map(
            open_registrations(viewer)[number], number, gate, measure, stretched=stretched
        )
        if layer is None:
            (layer,) = add_layers(viewer, [new])
        else:
            refill(layer, *new[:2])
    show_only(viewer, layer)
    return layer


def gate_layer(viewer: Viewer, number: int) -> Image | None:
    """The gate map layer of a registration; None before the first one was shown."""
    found = layers_of_registration(viewer, number, "gate_map")
    return found[0] if found else None


def gate_map(
    registration: Registration,
    number: int,
    gate: GateValues,
    measure: Measure = "entropy",
    *,
    stretched: bool = False,
) -> LayerData:
    """Entropy or margin of a gate in every cell, on the cells' own grid, as a hidden layer.

    Parameters
    ----------
    registration : Registration
    number : int
        Number of the registration in its viewer.
    gate : GateValues
    measure : {"entropy", "margin"}
        Entropy: 0 if one expert has all the weight, 1 if all experts are equal.  Margin: the value
        of the last chosen expert minus that of the first one not chosen; 0 is a tie.  Bright cells
        are unsure in both.
    stretched : bool
        Spread the colours from the 1st to the 99th percentile; else from 0 to 1, so that all gates
        can be compared.
    """
    volume = gate.entropy() if measure == "entropy" else gate.margin()
    low, first, median, third, high = (
        float(v) for v in np.nanpercentile(volume.values, (1, 25, 50, 75, 99))
    )
    about: dict[str, Any] = {"registration": registration, "number": number, "role": "gate_map"}
    about |= {
        "gate": gate,
        "measure": measure,
        "stretched": stretched,
        "quartiles": (first, median, third),
    }
    data, options = layer_options(volume, finer=FINER, nearest=True, outside=np.nan, **about)
    options |= {
        "name": f"#{number} gate {measure} of {short_gate_name(gate.gate)}",
        "colormap": gate_colours(measure),
        "contrast_limits": (low, max(high, low + 1e-6)) if stretched else (0.0, 1.0),
        "rendering": "translucent",
        "interpolation2d": "nearest",
        "opacity": 0.7,
        "visible": False,
    }
    return data, options, "image"


def short_gate_name(gate: GateId) -> str:
    """ "decoder 1 x", "encoder 1 block 0 moving"."""
    parts = (gate.block is not None and f"block {gate.block}", gate.image, gate.direction)
    return " ".join((f"{gate.part} {gate.layer}", *(str(part) for part in parts if part)))


def gate_colours(measure: Measure) -> dict[str, Any]:
    """Colours from dark (sure) to bright (unsure)."""
    rows = [[*(int(code[n : n + 2], 16) / 255 for n in (1, 3, 5)), 1.0] for code in SURE_TO_UNSURE]
    colours = np.array(rows if measure == "entropy" else rows[::-1])
    return {
        "colors": colours,
        "controls": np.linspace(0, 1, len(colours)),
        "name": f"gate {measure}",
    }
