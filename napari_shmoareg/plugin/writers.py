"""The napari writers: the volume or displacement of a layer, on its own grid, as NIfTI."""

from __future__ import annotations

from typing import Any

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.placement import KEY, volume_of


def write_image(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save an image layer.

    Layers of this plugin are written in the orientation and on the grid of their volume, even if
    the screen shows a straight copy of an oblique one; other layers as they lie in the viewer.

    Parameters
    ----------
    path : str
        Ends in .nii.gz or .nii.  Written atomically.
    data, meta
        From ``layer.as_layer_data_tuple()``.

    Returns
    -------
    list of str
        The paths written.

    Raises
    ------
    InputError
        If the layer is not a single 3D volume, or the path cannot be written to.
    """
    return _write(path, data, meta, "image")


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save a Labels layer like `write_image`; painted changes are saved too."""
    return _write(path, data, meta, "labels")


def write_displacement(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save the displacement of the registration that a Vectors layer shows as arrows or grid.

    Writes the whole field on the fixed image's grid, not the lines on the screen.

    Raises
    ------
    InputError
        If the layer shows no registration, or the path cannot be written to.
    """
    from napari_shmoareg.io import write_displacement as write

    registration = (meta.get("metadata", {}).get(KEY) or {}).get("registration")
    if registration is None:
        raise InputError(
            f"The layer '{meta.get('name')}' shows no registration of SHMoAReg, so there is no"
            " displacement to write. Choose the layer of a registration, such as '#1"
            " displacement'."
        )
    write(registration.displacement, path)
    return [path]


def _write(path: str, data: Any, meta: dict[str, Any], kind: str) -> list[str]:
    from napari.layers import Layer

    from napari_shmoareg.io import write_image as write

    write(volume_of(Layer.create(data, meta, kind)), path)
    return [path]
