"""The reader: images, labels, displacements, folders, shmoareg://demo.

The first image of a viewer becomes its moving one, the second its fixed one, and with both there the
Register panel comes up.  Plain images do not load torch.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.widgets.inputs import Known, layer_of_file
from napari_shmoareg.widgets.placement import KEY, tag
from napari_shmoareg.widgets.scenes import next_number

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.widgets.layers import LayerData

ADDRESS = "shmoareg:"
SERIES = re.compile(r"Choose one as FOLDER#SERIES_UID,.*", re.DOTALL)
ONE_SLICE = "Open one slice of the one you want, or put it into a folder of its own."
VOLUME = re.compile(r"Choose one as FOLDER#SERIES_UID/NUMBER.*", re.DOTALL)
ONE_VOLUME = (
    "If every slice is a file of its own, open one slice of the volume you want. A multi-frame file has to be "
    "split first, such as by dcm2niix; or register it by the command, which takes FOLDER#SERIES_UID/NUMBER."
)
COPIED = (
    "'{}' does not stand straight along the patient's axes. The screen shows a straight copy of it; what is registered "
    "and saved are its own voxels."
)


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Any]]:
    """The reader, for whatever the manifest's patterns let through; `read` says what is wrong with it."""
    return read


def read(path: str | Sequence[str]) -> list[Any]:
    """Open what lies at a path, or at several, one by one: volumes are not stacked.

    Errors and warnings become notifications, so that the other files open and the viewer stays usable; without
    a viewer errors are raised.

    Parameters
    ----------
    path : str or list of str
        An image, label map or displacement field; a DICOM slice or the folder of its series; a folder that
        ``shmoareg register`` wrote; ``shmoareg://demo``.

    Returns
    -------
    list of layer data
        ``[(None,)]`` where no layer is to be added.
    """
    from napari import current_viewer

    from napari_shmoareg.widgets.notices import tell

    viewer = current_viewer()
    known = Known.of(viewer)
    for place in [path] if isinstance(path, str) else path:
        if viewer is None:
            known.layers.extend(_open(place, known))
            continue
        try:
            with _told(viewer):
                known.layers.extend(_open(place, known))
        except Exception as error:
            tell(viewer, "error", _why_unread(place, error))
    if viewer is not None:
        _before_added(viewer, known)
    return known.layers or [(None,)]


def _why_unread(path: str, error: Exception) -> str:
    """Why a file could not be read, with its name; of an error that no reader foresaw the terminal has the rest."""
    if isinstance(error, InputError):
        text = VOLUME.sub(ONE_VOLUME, SERIES.sub(ONE_SLICE, str(error)))
        return text if Path(path).name in text else f"{path}: {text}"
    if isinstance(error, MemoryError):
        return f"{path} was not read: the memory ran out. Close other layers and programs, or open a smaller image."
    if isinstance(error, OSError):
        return f"{path} cannot be opened: {error.strerror or error}."
    logging.getLogger(__name__).error("%r could not be read", path, exc_info=error)
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{path} could not be read; the file may be damaged ({type(error).__name__}: {said})."


def _open(path: str, known: Known) -> list[LayerData]:
    """What lies at one path."""
    from napari_shmoareg.io.contents import is_registration_folder

    if path.startswith(ADDRESS):
        from napari_shmoareg.widgets.samples import open_address

        return open_address(path, known.viewer)
    if is_registration_folder(path):
        return _folder(path, known)
    layer = layer_of_file(path, known)
    return [] if layer is None else [layer]


def _folder(path: str, known: Known) -> list[LayerData]:
    """A registration: its images, its results, and the Experts panel."""
    from napari_shmoareg.io.registration_folder import read_scene
    from napari_shmoareg.widgets.layers import layers_of, layers_of_pair
    from napari_shmoareg.widgets.opening import when_complete

    scene = read_scene(path)
    number = 1 if known.viewer is None else next_number(known.viewer)
    number = max([number, *(kept["number"] + 1 for kept in known.tags() if kept.get("number"))])
    results = layers_of(scene, number)
    if known.viewer is not None:
        when_complete(known.viewer, scene, len(results))
    return [*layers_of_pair(scene.pair), *results]


def _before_added(viewer: Viewer, known: Known) -> None:
    """Get the viewer ready for the layers that were read."""
    from napari_shmoareg.widgets.notices import tell
    from napari_shmoareg.widgets.opening import fit, when_paired
    from napari_shmoareg.widgets.views import attend

    new = [options["metadata"][KEY] for _, options, _ in known.layers]
    ours = any(tag(layer, "volume") is not None for layer in viewer.layers)
    if new and (ours or not len(viewer.layers) or any("scene" in kept for kept in new)):
        attend(viewer)
    if new and not viewer.layers:
        fit(viewer)
    copied = [kept["volume"].name for kept in new if kept.get("copied") and kept.get("role")]
    if copied and not any(tag(layer, "copied") for layer in viewer.layers):
        tell(viewer, "info", COPIED.format(copied[0]))
    if any(kept.get("role") in ("moving", "fixed") for kept in new) and not any("scene" in kept for kept in new):
        when_paired(viewer)


@contextmanager
def _told(viewer: Viewer) -> Iterator[None]:
    """Warnings meant for people become notifications, each once; others go on as they are."""
    from napari_shmoareg.widgets.notices import tell

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
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
