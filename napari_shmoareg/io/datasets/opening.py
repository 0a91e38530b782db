"""open_dataset: whatever lies on the disk, as a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.asked import Asked
from napari_shmoareg.io.datasets.btcv import find_btcv, read_btcv
from napari_shmoareg.io.datasets.folders import read_image_folder
from napari_shmoareg.io.datasets.learn2reg import find_description, is_description, read_learn2reg
from napari_shmoareg.io.datasets.lists import read_listed
from napari_shmoareg.io.datasets.oasis import is_oasis, read_oasis
from napari_shmoareg.io.datasets.scans import Dataset, check_window
from napari_shmoareg.io.datasets.subjects import read_rule
from napari_shmoareg.io.untrusted import names_input, user_path

KINDS = ("auto", "folder", "list", "learn2reg", "oasis", "btcv")


@names_input
def open_dataset(
    path: str | Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    subject: str | None = None,
    kind: str = "auto",
    window: Sequence[float] | None = None,
    nan: float | None = None,
    channel: int | None = None,
) -> Dataset:
    """Find the scans, labels and pairs of a data set; no image is read yet.

    Parameters
    ----------
    path : str or Path
        A folder of images, a CSV or JSON list of pairs, Learn2Reg's ``<Task>_dataset.json`` or its folder, the
        folder of OASIS as neurite files it, or of BTCV.
    images : str, optional
        Which files are images, such as "images/*.nii.gz".
    labels : str, optional
        Which are label maps, such as "labels/*.nii.gz" (matched with the images by name), or how their names
        are made, such as "{name}_seg.nii.gz".
    subject : str, optional
        A regular expression with one group, which finds in a scan's name whose it is.  By default sub-XX in BIDS,
        OAS1_XXXX in OASIS, otherwise each scan is another person's.
    kind : {"auto", "folder", "list", "learn2reg", "oasis", "btcv"}
    window : (low, high), optional
        Intensities are cut off there; for BTCV -160 to 240 HU by default.
    nan, channel : optional
        As for `read_image`.

    Raises
    ------
    InputError
        If there is nothing to learn from, with what was looked for.
    """
    if kind not in KINDS:
        raise InputError(f"The kind of a data set is one of {', '.join(KINDS)}; got {kind!r}.")
    place = user_path(path).absolute()
    if not place.exists():
        raise InputError(f"There is no file or folder {path}. Check the spelling and the folder you are in.")
    asked = Asked(images, labels, read_rule(subject), check_window(window), nan, channel)
    seen = _recognised(place, asked) if kind == "auto" else kind
    if seen == "list" or (seen == "learn2reg" and place.is_file()):
        if place.is_dir():
            raise InputError(f"{path} is a folder; a CSV or JSON file that lists pairs was expected.")
        if asked.images or asked.labels:
            raise InputError(f"{path} names its images and labels itself; leave out the patterns of names.")
        return read_listed(place, asked) if seen == "list" else read_learn2reg(place, asked)
    if not place.is_dir():
        raise InputError(f"{path} is a file; for the kind '{seen}' a folder was expected.")
    if seen == "learn2reg":
        description = find_description(place)
        if description is None:
            raise InputError(f"{path} holds no <Task>_dataset.json of Learn2Reg. Name the file itself.")
        return read_learn2reg(description, asked)
    if seen == "oasis":
        return read_oasis(place, asked)
    return read_btcv(place, asked) if seen == "btcv" else read_image_folder(place, asked)


def _recognised(place: Path, asked: Asked) -> str:
    """What a path holds."""
    if place.is_file():
        ending = place.suffix.lower()
        if ending == ".json":
            return "learn2reg" if is_description(place) else "list"
        if ending in (".csv", ".txt", ".tsv"):
            return "list"
        raise InputError(
            f"{place} is no data set: a folder of images, a CSV or JSON list of pairs, or a Learn2Reg "
            "<Task>_dataset.json was expected."
        )
    patterns = [pattern.removeprefix("*/") for pattern in (asked.images, asked.labels) if pattern]
    if is_oasis(place) and not any("/" in pattern or "{" in pattern for pattern in patterns):
        return "oasis"
    if not patterns and find_description(place) is not None:
        return "learn2reg"
    return "btcv" if not patterns and find_btcv(place) is not None else "folder"
