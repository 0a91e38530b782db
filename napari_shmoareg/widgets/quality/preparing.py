"""What a comparison needs, computed beside the window."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_shmoareg.geometry import Volume
from napari_shmoareg.widgets.placement import layer_options
from napari_shmoareg.widgets.quality.composites import Sides, moving_at, sides

if TYPE_CHECKING:
    from napari_shmoareg.analysis.scene import Scene

COMPUTED = ("checkerboard", "swipe", "difference")
BESIDE = "side by side"
WORDS = {"before": "moving as filed", "affine": "moving after affine", "after": "warped"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a comparison needs.

    Attributes
    ----------
    scene : Scene
    number : int
        Of the registration in its viewer.
    mode : str
        "blend", "two colours", "checkerboard", "swipe", "difference" or "side by side".
    stage : str
        Of the moving image: "before", "affine" or "after".
    sides : Sides or None
        For the modes that are computed.
    extra : dict of name to (data, options)
        Layers that the viewer does not have: "fixed", "before", "affine", "after".
    """

    scene: Scene
    number: int
    mode: str
    stage: str
    sides: Sides | None = None
    extra: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)


def prepare(
    scene: Scene, number: int, mode: str, stage: str, present: Collection[str], kept: MutableMapping[str, Volume]
) -> Prepared:
    """Compute what a comparison needs.  Takes seconds: for a worker thread.

    Parameters
    ----------
    scene : Scene
    number : int
    mode, stage : str
        As in `Prepared`.
    present : collection of str
        Which of "fixed" and "after" have a layer in the viewer.
    kept : mutable mapping of stage to Volume
        The moving image on the fixed grid, as far as it was computed before; what is new is put there.
    """
    wanted = {stage, "after", "before" if stage == "after" else stage} if mode == BESIDE else {stage}
    for name in sorted(wanted - kept.keys() - {"after"}):
        kept[name] = moving_at(scene, name)
    volumes = {name: scene.warped if name == "after" else kept[name] for name in sorted(wanted)}
    if mode in COMPUTED:
        return Prepared(scene, number, mode, stage, sides(scene, volumes[stage]))
    extra = {}
    windows = _windows(scene)
    for name, volume in {"fixed": scene.pair.fixed, **volumes}.items():
        if name not in present:
            data, options = layer_options(volume, scene=scene, number=number, role="comparison")
            options["contrast_limits"] = windows["fixed" if name == "fixed" else "moving"]
            extra[name] = data, options | {"name": f"#{number} {WORDS.get(name, name)}"}
    return Prepared(scene, number, mode, stage, None, extra)


def _windows(scene: Scene) -> dict[str, tuple[float, float]]:
    """Dark and bright, where no layer says what to show."""
    from napari_shmoareg.widgets.layers import contrast

    fixed, moving = contrast(scene.pair.fixed, scene.pair.moving)
    return {"fixed": fixed, "moving": moving}
