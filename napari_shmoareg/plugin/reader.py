"""The napari reader and the sample data.

The first image of a viewer becomes the moving image, the second the fixed image, and then the
Register panel opens.  Plain images do not load torch.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.placement import KEY, layer_options, names_of, tag
from napari_shmoareg.plugin.registrations import next_number

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.plugin.layers import LayerData


PAIR, DEMO = "shmoareg://pair", "shmoareg://demo"
ADDRESSES = {PAIR: "the sample pair", DEMO: "the sample pair, registered"}
STEPS = 60  # refinement steps of the demo, as in `shmoareg demo`


def pair() -> list[LayerData]:
    """File > Open Sample: moving and fixed image with their labels, and the Register panel."""
    return _open(PAIR)


def demo() -> list[LayerData]:
    """File > Open Sample: the same pair, registered in the background; then the Experts panel
    opens.
    """
    return _open(DEMO)


def open_address(address: str, viewer: Viewer | None) -> list[LayerData]:
    """The layers of an address ``shmoareg://...``.

    Raises
    ------
    InputError
        If there is no such address.
    """
    from napari_shmoareg.io import sample_pair
    from napari_shmoareg.plugin.layers import layers_of_pair

    normalized = address.rstrip("/").lower()
    if normalized not in ADDRESSES:
        listed = ", ".join(f"{name} ({what})" for name, what in ADDRESSES.items())
        raise InputError(f"There is no {address}. The addresses are: {listed}.")
    sample = sample_pair().pair
    if viewer is not None and normalized == DEMO:
        _register_when_open(viewer, sample)
    return layers_of_pair(sample)


def _open(address: str) -> list[LayerData]:
    from napari import current_viewer

    from napari_shmoareg.plugin.opening import show_register_when_paired
    from napari_shmoareg.plugin.viewer import set_up_viewer

    viewer = current_viewer()
    if viewer is not None:
        set_up_viewer(viewer)
        show_register_when_paired(viewer)
    return open_address(address, viewer)


def _register_when_open(viewer: Viewer, pair: VolumePair) -> None:
    """Register a pair once its images and labels are open."""
    from napari_shmoareg.plugin.opening import register_now, run_when
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

    run_when(viewer, lambda: len(layers()) == len(pair.volumes), begin)


SLICES = (".dcm", ".ima")


class OpenInputs(NamedTuple):
    """The inputs that are open before a file is read.

    Attributes
    ----------
    viewer : Viewer or None
    layers : list of layer data
        Layers read before in the same call.
    """

    viewer: Viewer | None
    layers: list[Any]

    @classmethod
    def of(cls, viewer: Viewer | None) -> OpenInputs:
        """The inputs of a viewer before a call reads anything."""
        return cls(viewer, [])

    def tags(self) -> Iterator[dict[str, Any]]:
        """The metadata of each layer of this plugin, layers of the viewer first."""
        metadata = (
            [layer.metadata for layer in self.viewer.layers] if self.viewer is not None else []
        )
        for each in (*metadata, *(options["metadata"] for _, options, _ in self.layers)):
            if isinstance(each.get(KEY), dict):
                yield each[KEY]

    def inputs(self, *roles: str | None) -> list[dict[str, Any]]:
        """The metadata of the layers of files in these roles, results left out."""
        return [
            tags
            for tags in self.tags()
            if tags.get("role") in roles and "file" in tags and tags.get("number") is None
        ]

    def has_role(self, role: str) -> bool:
        """Whether any layer has a role, even one that this plugin did not open."""
        return any(tags.get("role") == role for tags in self.tags())


def layer_of_file(path: str, inputs: OpenInputs) -> LayerData | None:
    """An image, label map, displacement field or DICOM series as a layer; None if the series is
    already open.

    Parameters
    ----------
    path : str
        A file, or the folder of a DICOM series.
    inputs : OpenInputs

    Raises
    ------
    InputError
        If it cannot be read.
    """
    from napari_shmoareg.io.dicom import is_dicom
    from napari_shmoareg.io.files import ending
    from napari_shmoareg.io.images import inspect_file
    from napari_shmoareg.io.untrusted import user_path

    file = user_path(path)
    if file.is_dir():
        return _layer(_series(file), inputs)
    if file.is_file() and (ending(file) in SLICES or is_dicom(file)):
        return _slice(file.resolve(), inputs)
    contents = inspect_file(file)
    if contents.kind == "displacement":
        return _displacement(file)
    volume = _volume(file, contents.kind == "labels", contents.volumes)
    return _layer(volume, inputs, file=file.absolute())


def _slice(path: Path, inputs: OpenInputs) -> LayerData | None:
    """The whole series of a DICOM slice; None if another slice of it was opened before."""
    from napari_shmoareg.io.dicom import series_of

    if any(path in tags.get("slices", ()) for tags in inputs.tags()):
        return None
    series, slices = series_of(path)
    from napari_shmoareg.io import read_image

    return _layer(read_image(f"{path.parent}#{series}"), inputs, slices=frozenset(slices))


def _series(folder: Path) -> Volume:
    """The DICOM series in a folder; the error names other images in it."""
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
            f"{error} This folder contains {names[0]}{more}: open two of those."
        ) from error


def _volume(path: Path, is_labels: bool, volumes: int) -> Volume:
    """An image; or labels, with their names, if the file declares them, is named as labels and
    contains integers from 0, or lies in a folder of labels and looks like labels.
    """
    from napari_shmoareg.io import read_image
    from napari_shmoareg.io.images import is_named_as_labels, lies_with_labels, looks_like_labels
    from napari_shmoareg.io.label_names import name_labels

    channel = 0 if volumes > 1 else None
    if volumes > 1:
        warnings.warn(
            f"{path} holds {volumes} volumes. The first one was opened, because SHMoAReg registers"
            " single 3D volumes; save another one as a separate file to open it.",
            UserWarning,
            stacklevel=2,
        )
    if not is_labels and is_named_as_labels(path):
        try:
            volume = read_image(path, labels=True, channel=channel)
        # fractions, as in a map of probabilities; other errors are raised again below
        except InputError:
            return read_image(path, channel=channel)
        if volume.values.min() >= 0:
            return name_labels(volume, path)
    volume = read_image(path, labels=is_labels, channel=channel)
    if not is_labels and lies_with_labels(path) and looks_like_labels(volume.values):
        volume = replace(volume, is_labels=True)
    return name_labels(volume, path)


def _layer(volume: Volume, inputs: OpenInputs, **about: Any) -> LayerData:
    """A volume as a layer, with its role."""
    from napari_shmoareg.plugin.layers import contrast

    role = _role(volume, inputs)
    data, options = layer_options(volume, role=role, **about)
    if volume.is_labels:
        return data, options | {"opacity": 0.8}, "labels"
    return (
        data,
        options | {"colormap": "gray", "contrast_limits": contrast(volume, volume)[0]},
        "image",
    )


def _role(volume: Volume, inputs: OpenInputs) -> str | None:
    """Of images, moving, then fixed; labels get theirs from `_match_labels`."""
    if volume.is_labels:
        return None
    return next((role for role in ("moving", "fixed") if not inputs.has_role(role)), None)


def _match_labels(inputs: OpenInputs) -> None:
    """Give each image's role to the labels that belong to it, in whatever order the files were
    opened; labels that their data set pairs with the image come before others.
    """
    claims: dict[str, list[tuple[bool, bool, dict[str, Any]]]] = {}
    for labels in inputs.inputs("moving_labels", "fixed_labels", None):
        if labels["volume"].is_labels:
            role, paired = _owner(labels, inputs)
            claims.setdefault(role, []).append((paired, labels["role"] == role, labels))
    for role in ("moving_labels", "fixed_labels"):
        if role not in claims:
            continue
        _, _, best = max(claims[role], key=lambda claim: claim[:2])  # the first of equals
        for labels in inputs.inputs(role):
            labels["role"] = None
        if not inputs.has_role(role):
            best["role"] = role


def _owner(labels: dict[str, Any], inputs: OpenInputs) -> tuple[str, bool]:
    """The role of labels by the image on their grid, and whether a data set pairs the two by their
    paths (``labelsTr/case1`` and ``imagesTr/case1_0000``); "" if it is not clear.
    """
    from napari_shmoareg.datasets.name_patterns import match_labels

    volume, file = labels["volume"], labels["file"]
    images = [
        (f"{role}_labels", image, tags.get("file"))
        for role in ("moving", "fixed")
        for tags in inputs.tags()
        if tags.get("role") == role and (image := tags.get("volume")) is not None
        if image.grid.same_space(volume.grid)
    ]
    by_file = {path: role for role, _, path in images if path is not None}
    try:
        root = Path(os.path.commonpath([file, *by_file]))
        for image in match_labels(root, list(by_file), [file]).labels:
            return by_file[image], True
    except ValueError:
        pass  # on two drives, so of no common data set
    common = {role: _common_prefix_length(image.name, volume.name) for role, image, _ in images}
    best = [role for role, letters in common.items() if letters == max(common.values())]
    return (best[0] if len(best) == 1 else ""), False


def _tell_names(viewer: Viewer, inputs: OpenInputs) -> None:
    """Tell where names of labels are from, once for each source."""
    from napari_shmoareg.plugin.viewer import notify

    told = {names.source for layer in viewer.layers if (names := names_of(layer))}
    for _, options, _ in inputs.layers:
        tags = options["metadata"][KEY]
        source = tags["volume"].label_names.source if "file" in tags else ""
        if source and source not in told:
            told.add(source)
            name = options["name"]
            notify(viewer, "info", f"The labels of '{name}' have their names from {source}.")


def _common_prefix_length(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _displacement(path: Path) -> LayerData:
    """The length of a displacement field at each voxel, mm."""
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
    "'{}' is oblique to the patient's axes. The screen shows a copy on straight axes; the original"
    " voxels are registered and saved."
)


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Any]]:
    """The reader of all paths that match the manifest's patterns; `read` reports errors."""
    return read


def read(path: str | Sequence[str]) -> list[Any]:
    """Open one or several paths, one by one: volumes are not stacked.

    Errors and warnings become notifications, so that the other files open and the viewer stays
    usable; without a viewer, errors are raised.

    Parameters
    ----------
    path : str or list of str
        An image, label map or displacement field; a DICOM slice or the folder of its series; a
        folder that ``shmoareg register`` wrote; ``shmoareg://demo``.

    Returns
    -------
    list of layer data
        ``[(None,)]`` if there is no layer to add.
    """
    from napari import current_viewer

    from napari_shmoareg.plugin.viewer import notify

    viewer = current_viewer()
    inputs = OpenInputs.of(viewer)
    for one in [path] if isinstance(path, str) else path:
        if viewer is None:
            inputs.layers.extend(_open_path(one, inputs))
            continue
        try:
            with _notify_warnings(viewer):
                inputs.layers.extend(_open_path(one, inputs))
        except Exception as error:
            notify(viewer, "error", _error_message(one, error))
    _match_labels(inputs)
    if viewer is not None:
        _tell_names(viewer, inputs)
        _prepare_viewer(viewer, inputs)
    return inputs.layers or [(None,)]


def _error_message(path: str, error: Exception) -> str:
    """Why a file could not be read, with its name; the traceback of an unexpected error is
    logged.
    """
    if isinstance(error, InputError):
        from napari_shmoareg.plugin.controls.errors import form_message

        return _reason_first(form_message(error), path)
    if isinstance(error, MemoryError):
        text = "Out of memory: close other layers and programs, or open a smaller image."
        return _reason_first(text, path)
    if isinstance(error, OSError):
        return _reason_first(f"The file cannot be opened: {error.strerror or error}.", path)
    logging.getLogger(__name__).error("%r could not be read", path, exc_info=error)
    message = (str(error).strip().splitlines() or ["no message"])[0]
    text = f"The file may be damaged ({type(error).__name__}: {message})."
    return _reason_first(text, path)


def _reason_first(text: str, path: str) -> str:
    """Put the whole path last; in the text only its name remains."""
    return f"{text.replace(path, Path(path).name)} File: {path}"


def _open_path(path: str, inputs: OpenInputs) -> list[LayerData]:
    """The layers of one path."""
    from napari_shmoareg.io.images import is_registration_folder

    if path.startswith(ADDRESS):
        return open_address(path, inputs.viewer)
    if is_registration_folder(path):
        return _folder(path, inputs)
    layer = layer_of_file(path, inputs)
    return [] if layer is None else [layer]


def _folder(path: str, inputs: OpenInputs) -> list[LayerData]:
    """The images and results of a registration folder; the Experts panel opens with them."""
    from napari_shmoareg.io import read_registration
    from napari_shmoareg.plugin.layers import layers_of, layers_of_pair
    from napari_shmoareg.plugin.opening import show_experts_when_complete

    registration = read_registration(path)
    number = 1 if inputs.viewer is None else next_number(inputs.viewer)
    number = max([number, *(tags["number"] + 1 for tags in inputs.tags() if tags.get("number"))])
    results = layers_of(registration, number)
    if inputs.viewer is not None:
        show_experts_when_complete(inputs.viewer, registration, len(results))
    return [*layers_of_pair(registration.pair), *results]


def _prepare_viewer(viewer: Viewer, inputs: OpenInputs) -> None:
    """Prepare the viewer for the layers that were read."""
    from napari_shmoareg.plugin.opening import fit_view, show_register_when_paired
    from napari_shmoareg.plugin.viewer import notify, set_up_viewer

    new = [options["metadata"][KEY] for _, options, _ in inputs.layers]
    ours = any(tag(layer, "volume") is not None for layer in viewer.layers)
    if new and (ours or not len(viewer.layers) or any("registration" in tags for tags in new)):
        set_up_viewer(viewer)
    if new and not viewer.layers:
        fit_view(viewer)
    copied = [tags["volume"].name for tags in new if tags.get("copied") and tags.get("role")]
    if copied and not any(tag(layer, "copied") for layer in viewer.layers):
        notify(viewer, "info", COPIED.format(copied[0]))
    if any(tags.get("role") in ("moving", "fixed") for tags in new) and not any(
        "registration" in tags for tags in new
    ):
        show_register_when_paired(viewer)


@contextmanager
def _notify_warnings(viewer: Viewer) -> Iterator[None]:
    """Show each `UserWarning` once as a notification; pass other warnings on."""
    from napari_shmoareg.plugin.viewer import notify

    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        for text, warning in {str(warning.message): warning for warning in caught}.items():
            if issubclass(warning.category, UserWarning):
                notify(viewer, "warning", text)
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
