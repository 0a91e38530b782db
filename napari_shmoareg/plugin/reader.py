"""The napari reader, and the sample data.

The first image of a viewer becomes its moving one, the second its fixed one, and with both the
Register panel opens.  Plain images do not load torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.placement import KEY, layer_options, tag
from napari_shmoareg.plugin.registrations import next_number

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.plugin.layers import LayerData


PAIR, DEMO = "shmoareg://pair", "shmoareg://demo"
ADDRESSES = {PAIR: "the sample pair", DEMO: "the sample pair, registered"}
STEPS = 60  # of the demo's refinement, as of `shmoareg demo`


def pair() -> list[LayerData]:
    """File > Open Sample: moving and fixed image with their labels; the Register panel comes up."""
    return _open(PAIR)


def demo() -> list[LayerData]:
    """File > Open Sample: the same, registered in the background; the Experts panel comes up with
    the result.
    """
    return _open(DEMO)


def open_address(address: str, viewer: Viewer | None) -> list[LayerData]:
    """What ``shmoareg://...`` stands for.

    Raises
    ------
    InputError
        If it stands for nothing.
    """
    from napari_shmoareg.io import sample_pair
    from napari_shmoareg.plugin.layers import layers_of_pair

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

    from napari_shmoareg.plugin.opening import when_paired
    from napari_shmoareg.plugin.viewer import attend

    viewer = current_viewer()
    if viewer is not None:
        attend(viewer)
        when_paired(viewer)
    return open_address(address, viewer)


def _register_when_open(viewer: Viewer, pair: VolumePair) -> None:
    """Register a pair as soon as its images and labels are open."""
    from napari_shmoareg.plugin.opening import register_now, when
    from napari_shmoareg.plugin.placement import tag

    def layers() -> dict[str, Layer]:
        opened = {id(tag(layer, "volume")): layer for layer in viewer.layers}
        return {
            role: opened[id(volume)]
            for role, volume in pair.volumes.items()
            if id(volume) in opened
        }

    def begin() -> None:
        found = layers()
        register_now(viewer, found["moving"], found["fixed"], refine=STEPS)

    when(viewer, lambda: len(layers()) == len(pair.volumes), begin)


SLICES = (".dcm", ".ima")


class OpenInputs(NamedTuple):
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
    def of(cls, viewer: Viewer | None) -> OpenInputs:
        """Before anything is read."""
        return cls(viewer, [])

    def tags(self) -> Iterator[dict[str, Any]]:
        """What is kept with each layer of this plugin, those of the viewer first."""
        metadata = (
            [layer.metadata for layer in self.viewer.layers] if self.viewer is not None else []
        )
        for each in (*metadata, *(options["metadata"] for _, options, _ in self.layers)):
            if isinstance(each.get(KEY), dict):
                yield each[KEY]

    def in_role(self, role: str) -> Volume | None:
        """The volume that was opened in a role."""
        found = [
            kept["volume"] for kept in self.tags() if kept.get("role") == role and "volume" in kept
        ]
        return found[-1] if found else None

    def taken(self, role: str) -> bool:
        """Whether a layer has a role, be it one that was not opened by this plugin."""
        return any(kept.get("role") == role for kept in self.tags())


def layer_of_file(path: str, known: OpenInputs) -> LayerData | None:
    """An image, label map, displacement field or DICOM series as a layer; None if the series is
    open already.

    Parameters
    ----------
    path : str
        A file, or the folder of a DICOM series.
    known : OpenInputs

    Raises
    ------
    InputError
        If it cannot be read.
    """
    from napari_shmoareg.io.dicom import is_dicom
    from napari_shmoareg.io.files import ending
    from napari_shmoareg.io.images import inspect_file
    from napari_shmoareg.io.untrusted import user_path

    place = user_path(path)
    if place.is_dir():
        return _layer(_series(place), known)
    if place.is_file() and (ending(place) in SLICES or is_dicom(place)):
        return _slice(place.resolve(), known)
    contents = inspect_file(place)
    if contents.kind == "displacement":
        return _displacement(place)
    return _layer(_volume(place, contents.kind == "labels", contents.volumes), known)


def _slice(path: Path, known: OpenInputs) -> LayerData | None:
    """The whole series that a DICOM slice belongs to; once, however many of its slices are
    dropped.
    """
    from napari_shmoareg.io.dicom import series_of

    if any(path in kept.get("slices", ()) for kept in known.tags()):
        return None
    series, slices = series_of(path)
    from napari_shmoareg.io import read_image

    return _layer(read_image(f"{path.parent}#{series}"), known, slices=frozenset(slices))


def _series(folder: Path) -> Volume:
    """The DICOM series in a folder; where there is none, a folder of other images says so."""
    from napari_shmoareg.io import read_image
    from napari_shmoareg.io.images import image_files

    try:
        return read_image(folder)
    except InputError as error:
        names = image_files(folder)
        if not names:
            raise
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"{error} In this folder lie {names[0]}{more}: open two of those."
        ) from error


def _volume(path: Path, is_labels: bool, volumes: int) -> Volume:
    """An image, or labels where the file says so, or where its name does and it holds whole numbers
    from 0.
    """
    from napari_shmoareg.io import read_image
    from napari_shmoareg.io.images import is_named_as_labels

    channel = 0 if volumes > 1 else None
    if volumes > 1:
        warnings.warn(
            f"{path} holds {volumes} volumes. The first one was opened, as SHMoAReg registers"
            " single 3D volumes; save another one as a file of its own to open it.",
            UserWarning,
            stacklevel=2,
        )
    if not is_labels and is_named_as_labels(path):
        try:
            volume = read_image(path, labels=True, channel=channel)
        # fractions, as in a map of probabilities; what else is wrong comes up again below
        except InputError:
            return read_image(path, channel=channel)
        if volume.values.min() >= 0:
            return volume
    return read_image(path, labels=is_labels, channel=channel)


def _layer(volume: Volume, known: OpenInputs, **about: Any) -> LayerData:
    """A volume as a layer, in the role that falls to it."""
    from napari_shmoareg.plugin.layers import contrast

    data, options = layer_options(volume, role=_role(volume, known), **about)
    if volume.is_labels:
        return data, options | {"opacity": 0.8}, "labels"
    return (
        data,
        options | {"colormap": "gray", "contrast_limits": contrast(volume, volume)[0]},
        "image",
    )


def _role(volume: Volume, known: OpenInputs) -> str | None:
    """Moving, then fixed; labels belong to the one image on whose grid they lie, or to the one
    called more alike.
    """
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
    from napari_shmoareg.io import read_transform
    from napari_shmoareg.io.files import stem

    field = read_transform(path).field
    if field is None:
        raise InputError(f"{path} holds no displacement field.")
    length = np.linalg.norm(field.vectors, axis=-1)
    data, options = layer_options(Volume(length, field.grid, f"{stem(path)}, length in mm"))
    most = max(float(length.max()), 1e-6)
    return data, options | {"colormap": "viridis", "contrast_limits": (0.0, most)}, "image"


ADDRESS = "shmoareg:"
COPIED = (
    "'{}' does not stand straight along the patient's axes. The screen shows a straight copy of it;"
    " what is registered and saved are its own voxels."
)


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Any]]:
    """The reader, for whatever the manifest's patterns let through; `read` says what is wrong with
    it.
    """
    return read


def read(path: str | Sequence[str]) -> list[Any]:
    """Open what lies at a path, or at several, one by one: volumes are not stacked.

    Errors and warnings become notifications, so that the other files open and the viewer stays
    usable; without a viewer errors are raised.

    Parameters
    ----------
    path : str or list of str
        An image, label map or displacement field; a DICOM slice or the folder of its series; a
        folder that ``shmoareg register`` wrote; ``shmoareg://demo``.

    Returns
    -------
    list of layer data
        ``[(None,)]`` where no layer is to be added.
    """
    from napari import current_viewer

    from napari_shmoareg.plugin.viewer import tell

    viewer = current_viewer()
    known = OpenInputs.of(viewer)
    for place in [path] if isinstance(path, str) else path:
        if viewer is None:
            known.layers.extend(_open_images(place, known))
            continue
        try:
            with _told(viewer):
                known.layers.extend(_open_images(place, known))
        except Exception as error:
            tell(viewer, "error", _why_unread(place, error))
    if viewer is not None:
        _before_added(viewer, known)
    return known.layers or [(None,)]


def _why_unread(path: str, error: Exception) -> str:
    """Why a file could not be read, with its name; of an error that no reader foresaw the terminal
    has the rest.
    """
    if isinstance(error, InputError):
        from napari_shmoareg.plugin.controls.errors import in_words_of_the_form

        text = in_words_of_the_form(error)
        return text if Path(path).name in text else f"{path}: {text}"
    if isinstance(error, MemoryError):
        return (
            f"{path} was not read: the memory ran out. Close other layers and programs, or open a"
            " smaller image."
        )
    if isinstance(error, OSError):
        return f"{path} cannot be opened: {error.strerror or error}."
    logging.getLogger(__name__).error("%r could not be read", path, exc_info=error)
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{path} could not be read; the file may be damaged ({type(error).__name__}: {said})."


def _open_images(path: str, known: OpenInputs) -> list[LayerData]:
    """What lies at one path."""
    from napari_shmoareg.io.images import is_registration_folder

    if path.startswith(ADDRESS):
        pass  # MOVED

        return open_address(path, known.viewer)
    if is_registration_folder(path):
        return _folder(path, known)
    layer = layer_of_file(path, known)
    return [] if layer is None else [layer]


def _folder(path: str, known: OpenInputs) -> list[LayerData]:
    """A registration: its images, its results, and the Experts panel."""
    from napari_shmoareg.io import read_registration
    from napari_shmoareg.plugin.layers import layers_of, layers_of_pair
    from napari_shmoareg.plugin.opening import when_complete

    registration = read_registration(path)
    number = 1 if known.viewer is None else next_number(known.viewer)
    number = max([number, *(kept["number"] + 1 for kept in known.tags() if kept.get("number"))])
    results = layers_of(registration, number)
    if known.viewer is not None:
        when_complete(known.viewer, registration, len(results))
    return [*layers_of_pair(registration.pair), *results]


def _before_added(viewer: Viewer, known: OpenInputs) -> None:
    """Get the viewer ready for the layers that were read."""
    from napari_shmoareg.plugin.opening import fit, when_paired
    from napari_shmoareg.plugin.viewer import attend, tell

    new = [options["metadata"][KEY] for _, options, _ in known.layers]
    ours = any(tag(layer, "volume") is not None for layer in viewer.layers)
    if new and (ours or not len(viewer.layers) or any("registration" in kept for kept in new)):
        attend(viewer)
    if new and not viewer.layers:
        fit(viewer)
    copied = [kept["volume"].name for kept in new if kept.get("copied") and kept.get("role")]
    if copied and not any(tag(layer, "copied") for layer in viewer.layers):
        tell(viewer, "info", COPIED.format(copied[0]))
    if any(kept.get("role") in ("moving", "fixed") for kept in new) and not any(
        "registration" in kept for kept in new
    ):
        when_paired(viewer)


@contextmanager
def _told(viewer: Viewer) -> Iterator[None]:
    """Warnings meant for people become notifications, each once; others go on as they are."""
    from napari_shmoareg.plugin.viewer import tell

    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        for text, warning in {str(warning.message): warning for warning in caught}.items():
            if issubclass(warning.category, UserWarning):
                tell(viewer, "warning", text)
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
