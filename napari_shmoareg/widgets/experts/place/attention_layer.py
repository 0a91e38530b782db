"""The attention of one head as a layer, and the network that says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_shmoareg.widgets.experts.place.pins import about, layer_of_place
from napari_shmoareg.widgets.experts.replaying import Work, replay_of
from napari_shmoareg.widgets.placement import KEY

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.analysis.attention import AttentionProbe, HeadAttention
    from napari_shmoareg.analysis.expert_maps import TokenLoad
    from napari_shmoareg.analysis.place_reading import CellReading
    from napari_shmoareg.analysis.scene import Scene

ROLE = "attention"
ANOTHER = (
    "The network that was run again does not choose as the registration did ({same} of {asked} tokens do): these are "
    "other weights of that name, or another version. What is drawn is not what made this result."
)
ASKED = 12  # tokens of each gate whose choices are compared with those of the registration


class Probed(NamedTuple):
    """A probe, and how far it is that of the registration.

    Attributes
    ----------
    probe : AttentionProbe
    same, asked : int
        Of so many tokens that were compared so many chose the same heads as in the registration.
    """

    probe: AttentionProbe
    same: int
    asked: int


def probe_of(scene: Scene, work: Work, weights: str | Path | None = None) -> Probed:
    """Run the encoder once more, and compare its choices with the registration's; in a worker's thread, seconds.

    Raises
    ------
    InputError, TooLargeError, Interrupted
        As `replay_of`.
    """
    from napari_shmoareg.analysis.attention import AttentionProbe
    from napari_shmoareg.engine.interruption import interruptible

    replay = replay_of(scene, work, weights)
    work.tell("running the encoder", 0.6)
    with interruptible(replay.network, work.check):
        probe = AttentionProbe.of(replay)
    work.tell("comparing with the registration", 0.9)
    same = asked = 0
    for load in scene.token_loads:
        work.check()
        for cell in _spread(load):
            chosen = {found.head for found in probe.at(load.place, cell)}
            same += chosen == set(np.flatnonzero(load.values[cell]).tolist())
            asked += 1
    return Probed(probe, same, asked)


def show_attention(viewer: Viewer, number: int, scene: Scene, found: HeadAttention) -> Image:
    """Fill the attention of a head into its layer, ``#1 attention``, which is made where there is none.

    On the tokens' own grid, never resampled (but for the copy on straight axes of an oblique grid), from 0 to
    the largest value.  The name stays: another one would have every panel look at all layers again.
    """
    from napari_shmoareg.widgets.layers import FINER, head_colours
    from napari_shmoareg.widgets.placement import layer_options
    from napari_shmoareg.widgets.showing import refill, uncover

    data, options = layer_options(found.volume, finer=FINER, nearest=True, head=found.head)
    options["metadata"][KEY] |= about(scene, ROLE)[KEY]
    top = max(float(found.volume.values.max(initial=0.0)), 1e-6)
    options |= {
        "name": f"#{number} attention",
        "colormap": head_colours(),
        "contrast_limits": (0.0, top),
    }
    layer = layer_of_place(viewer, scene, ROLE)
    if layer is None:
        from napari.layers import Image

        more = {"rendering": "translucent", "interpolation2d": "nearest", "opacity": 0.8}
        active = viewer.layers.selection.active
        layer = viewer.add_layer(Image(data, **options, **more))
        viewer.layers.selection.active = active
    elif layer.data.shape == data.shape and np.allclose((layer.scale, layer.translate), _placed(options)):
        layer.metadata = options["metadata"]
        layer.data = data  # each further change would draw the canvas once more
        layer.contrast_limits_range = layer.contrast_limits = options["contrast_limits"]
    else:
        refill(layer, data, options)
    uncover(viewer, layer)
    return layer  # type: ignore[return-value]


def _placed(options: dict[str, Any]) -> tuple[Any, Any]:
    return options["scale"], options["translate"]


def drop_attention(viewer: Viewer, scene: Scene) -> None:
    """Take the layer away."""
    layer = layer_of_place(viewer, scene, ROLE)
    if layer is not None:
        viewer.layers.remove(layer)


def doubt(probed: Probed) -> str:
    """What has to be said of a network that does not choose as the registration did."""
    return "" if probed.same == probed.asked else ANOTHER.format(same=probed.same, asked=probed.asked)


def words(cell: CellReading, found: HeadAttention, heads: list[HeadAttention]) -> str:
    """What is drawn of a token, and whether it chose the same heads in the registration."""
    values, window = found.volume.values, int(found.window.sum())
    total, own = float(values.sum()), float(values[cell.cell])
    text = (
        f"Token {cell.cell} attends, by head {found.head}, to the {window} tokens of its window: the values sum to "
        f"{total:.3f}; equal attention would be {1 / max(window, 1):.3g} each, to itself it is {own:.3g}."
    )
    if {one.head for one in heads} != set(cell.experts):
        text += (
            f" In the registration this token chose the heads {', '.join(map(str, sorted(cell.experts)))}, in this run "
            f"{', '.join(str(one.head) for one in sorted(heads, key=lambda one: one.head))}."
        )
    return text


def _spread(load: TokenLoad) -> Sequence[tuple[int, int, int]]:
    """Some tokens of a gate, evenly spread."""
    shape = load.grid.shape
    flat = np.linspace(0, np.prod(shape) - 1, ASKED).astype(int)
    return [(int(i), int(j), int(k)) for i, j, k in zip(*np.unravel_index(np.unique(flat), shape), strict=True)]
