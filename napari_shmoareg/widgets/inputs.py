"""Files as layers, in the role that falls to them.  Without torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.widgets.placement import KEY, layer_options

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.widgets.layers import LayerData

SLICES = (".dcm", ".ima")


class Known(NamedTuple):
    """What a new layer may have to do with.

    Attributes
    ----------
    viewer : Viewer or None
    layers : list of layer data
        Those read before it in the same call.
    """

    viewer: Viewer | None
    layers: list[Any]

    @classmethod
    def of(cls, viewer: Viewer | None) -> Known:
        """Before anything is read."""
        return cls(viewer, [])

    def tags(self) -> Iterator[dict[str, Any]]:
        """What is kept with each layer of this plugin, those of the viewer first."""
        metadata = [layer.metadata for layer in self.viewer.layers] if self.viewer is not None else []
        for each in (*metadata, *(options["metadata"] for _, options, _ in self.layers)):
            if isinstance(each.get(KEY), dict):
                yield each[KEY]

    def in_role(self, role: str) -> Volume | None:
        """The volume that was opened in a role."""
        found = [kept["volume"] for kept in self.tags() if kept.get("role") == role and "volume" in kept]
        return found[-1] if found else None

    def taken(self, role: str) -> bool:
        """Whether a layer has a role, be it one that was not opened by this plugin."""
        return any(kept.get("role") == role for kept in self.tags())


def layer_of_file(path: str, known: Known) -> LayerData | None:
    """An image, label map, displacement field or DICOM series as a layer; None if the series is open already.

    Parameters
    ----------
    path : str
        A file, or the folder of a DICOM series.
    known : Known

    Raises
    ------
    InputError
        If it cannot be read.
    """
    from napari_shmoareg.io.atomic import ending
    from napari_shmoareg.io.contents import look
    from napari_shmoareg.io.dicom import is_dicom
    from napari_shmoareg.io.untrusted import user_path

    place = user_path(path)
    if place.is_dir():
        return _layer(_series(place), known)
    if place.is_file() and (ending(place) in SLICES or is_dicom(place)):
        return _slice(place.resolve(), known)
    contents = look(place)
    if contents.kind == "displacement":
        return _displacement(place)
    return _layer(_volume(place, contents.kind == "labels", contents.volumes), known)


def _slice(path: Path, known: Known) -> LayerData | None:
    """The whole series that a DICOM slice belongs to; once, however many of its slices are dropped."""
    from napari_shmoareg.io.dicom import series_of

    if any(path in kept.get("slices", ()) for kept in known.tags()):
        return None
    series, slices = series_of(path)
    from napari_shmoareg.io.images import read_image

    return _layer(read_image(f"{path.parent}#{series}"), known, slices=frozenset(slices))


def _series(folder: Path) -> Volume:
    """The DICOM series in a folder; where there is none, a folder of other images says so."""
    from napari_shmoareg.io.contents import image_files
    from napari_shmoareg.io.images import read_image

    try:
        return read_image(folder)
    except InputError as error:
        names = image_files(folder)
        if not names:
            raise
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"{error} In this folder lie {names[0]}{more}: open two of those.") from error


def _volume(path: Path, is_labels: bool, volumes: int) -> Volume:
    """An image, or labels where the file says so, or where its name does and it holds whole numbers from 0."""
    from napari_shmoareg.io.contents import is_named_as_labels
    from napari_shmoareg.io.images import read_image

    channel = 0 if volumes > 1 else None
    if volumes > 1:
        warnings.warn(
            f"{path} holds {volumes} volumes. The first one was opened, as SHMoAReg registers single 3D volumes; save "
            "another one as a file of its own to open it.",
            UserWarning,
            stacklevel=2,
        )
    if not is_labels and is_named_as_labels(path):
        try:
            volume = read_image(path, labels=True, channel=channel)
        except InputError:  # fractions, as in a map of probabilities; what else is wrong comes up again below
            return read_image(path, channel=channel)
        if volume.values.min() >= 0:
            return volume
    return read_image(path, labels=is_labels, channel=channel)


def _layer(volume: Volume, known: Known, **about: Any) -> LayerData:
    """A volume as a layer, in the role that falls to it."""
    from napari_shmoareg.widgets.layers import contrast

    data, options = layer_options(volume, role=_role(volume, known), **about)
    if volume.is_labels:
        return data, options | {"opacity": 0.8}, "labels"
    return data, options | {"colormap": "gray", "contrast_limits": contrast(volume, volume)[0]}, "image"


def _role(volume: Volume, known: Known) -> str | None:
    """Moving, then fixed; labels belong to the one image on whose grid they lie, or to the one called more alike."""
    if not volume.is_labels:
        return next((role for role in ("moving", "fixed") if not known.taken(role)), None)
    alike = {}
    for role in ("moving", "fixed"):
        image = known.in_role(role)
        if image is not None and image.grid.same_space(volume.grid):
            alike[f"{role}_labels"] = _letters_in_common(image.name, volume.name)
    best = [role for role, letters in alike.items() if letters == max(alike.values())]
    return best[0] if len(best) == 1 and not known.taken(best[0]) else None


def _letters_in_common(a: str, b: str) -> int:
    """How many letters two names begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _displacement(path: Path) -> LayerData:
    """How far a displacement field takes each voxel, mm."""
    from napari_shmoareg.io.atomic import stem
    from napari_shmoareg.io.transforms import read_transform

    field = read_transform(path).field
    if field is None:
        raise InputError(f"{path} holds no displacement field.")
    length = np.linalg.norm(field.vectors, axis=-1)
    data, options = layer_options(Volume(length, field.grid, f"{stem(path)}, length in mm"))
    most = max(float(length.max()), 1e-6)
    return data, options | {"colormap": "viridis", "contrast_limits": (0.0, most)}, "image"
