"""The built-in pair in a viewer: as it is, or registered at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.widgets.layers import LayerData

PAIR, DEMO = "shmoareg://pair", "shmoareg://demo"
ADDRESSES = {PAIR: "the sample pair", DEMO: "the sample pair, registered"}
STEPS = 60  # of the demo's refinement, as of `shmoareg demo`


def pair() -> list[LayerData]:
    """File > Open Sample: moving and fixed image with their labels; the Register panel comes up."""
    return _open(PAIR)


def demo() -> list[LayerData]:
    """File > Open Sample: the same, registered in the background; the Experts panel comes up with the result."""
    return _open(DEMO)


def open_address(address: str, viewer: Viewer | None) -> list[LayerData]:
    """What ``shmoareg://...`` stands for.

    Raises
    ------
    InputError
        If it stands for nothing.
    """
    from napari_shmoareg.io.samples import sample_pair
    from napari_shmoareg.widgets.layers import layers_of_pair

    known = address.rstrip("/").lower()
    if known not in ADDRESSES:
        listed = ", ".join(f"{name} ({what})" for name, what in ADDRESSES.items())
        raise InputError(f"There is no {address}. What there is: {listed}.")
    sample = sample_pair().pair
    if viewer is not None and known == DEMO:
        _register_when_open(viewer, sample)
    return layers_of_pair(sample)


def _open(address: str) -> list[LayerData]:
    from napari import current_viewer

    from napari_shmoareg.widgets.opening import when_paired
    from napari_shmoareg.widgets.views import attend

    viewer = current_viewer()
    if viewer is not None:
        attend(viewer)
        when_paired(viewer)
    return open_address(address, viewer)


def _register_when_open(viewer: Viewer, pair: VolumePair) -> None:
    """Register a pair as soon as its images and labels are open."""
    from napari_shmoareg.widgets.opening import register_now, when
    from napari_shmoareg.widgets.placement import tag

    def layers() -> dict[str, Layer]:
        opened = {id(tag(layer, "volume")): layer for layer in viewer.layers}
        return {role: opened[id(volume)] for role, volume in pair.volumes.items() if id(volume) in opened}

    def begin() -> None:
        found = layers()
        register_now(viewer, found["moving"], found["fixed"], refine=STEPS)

    when(viewer, lambda: len(layers()) == len(pair.volumes), begin)
