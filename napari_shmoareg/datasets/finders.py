"""open_dataset: a folder or a list on disk as a Dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from napari_shmoareg.datasets.dataset import (
    Dataset,
    DatasetOptions,
    Skipped,
    check_window,
    make_scans,
    read_rule,
)
from napari_shmoareg.datasets.layouts import (
    find_bids,
    find_btcv,
    find_description,
    is_bids,
    is_description,
    is_oasis,
    read_btcv,
    read_learn2reg,
    read_oasis,
)
from napari_shmoareg.datasets.name_patterns import (
    Matched,
    is_volume,
    match_labels,
    match_template,
    volumes_matching,
)
from napari_shmoareg.datasets.pair_list import read_listed
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import stem
from napari_shmoareg.io.images import is_named_as_labels
from napari_shmoareg.io.untrusted import names_input, user_path

_SIDES = (  # folders of images and of their label maps
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("images", "segmentations"),
    ("images", "masks"),
    ("image", "label"),
    ("img", "label"),
)
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: case, channel


def read_image_folder(root: Path, asked: DatasetOptions) -> Dataset:
    """A folder of images as a data set.

    With no patterns: ``imagesTr`` and ``labelsTr`` or names like these; BIDS; otherwise all image
    files, of which those named as labels (``_seg``, ``_label``, ``_aseg``, ``_dseg``) belong to the
    image of their name.

    Parameters
    ----------
    root : Path
    asked : DatasetOptions
        `images` such as "images/*.nii.gz"; `labels` another such pattern, or a template with
        {name}.

    Raises
    ------
    InputError
        If there are fewer than two images, or no label map of a pattern belongs to an image.
    """
    images, matched = _with_patterns(root, asked) if asked.images or asked.labels else _found(root)
    images, channels = _first_channels(images, matched)
    _check_count(root, images, asked)
    skipped = (*matched.skipped, *channels)
    return Dataset(
        kind="folder",
        root=root,
        scans=make_scans(root, images, matched.labels, asked.rule),
        window=asked.window,
        skipped=tuple(sorted(skipped, key=lambda entry: (entry.path, entry.why))),
        nan=asked.nan,
        channel=asked.channel,
    )


def _with_patterns(root: Path, asked: DatasetOptions) -> tuple[list[Path], Matched]:
    if asked.labels is None:
        images = volumes_matching(root, asked.images or "*")
        return images, Matched({}, [])
    if "{" in asked.labels:
        images = volumes_matching(root, asked.images) if asked.images else _images_beside(root, [])
        matched = match_template(root, images, asked.labels, asked.images)
        maps = set(matched.labels.values())
        images = [image for image in images if image not in maps]
        matched = Matched(
            matched.labels, [entry for entry in matched.skipped if entry.path not in maps]
        )
    else:
        labels = volumes_matching(root, asked.labels)
        if not labels:
            raise InputError(f"No label map in {root} matches '{asked.labels}'.{_some(root)}")
        images = (
            volumes_matching(root, asked.images) if asked.images else _images_beside(root, labels)
        )
        images = [image for image in images if image not in set(labels)]
        patterns = (asked.images, asked.labels) if asked.images else None
        matched = match_labels(root, images, labels, patterns)
    if images and not matched.labels:
        raise InputError(
            f"No image in {root} has a label map that matches '{asked.labels}': an image is such as"
            f" '{images[0].name}'{_such_as(matched, images)}. Give a pattern whose wildcard stands"
            " for the same as in the pattern of the images, or a template such as"
            " 'labels/{name}.nii.gz'."
        )
    return images, matched


def _such_as(matched: Matched, images: list[Path]) -> str:
    other = next((entry.path.name for entry in matched.skipped if entry.path not in images), None)
    return "" if other is None else f", a label map such as '{other}'"


def _found(root: Path) -> tuple[list[Path], Matched]:
    """Images and labels without any pattern."""
    for of_images, of_labels in _SIDES:
        images = volumes_matching(root, f"{of_images}/*")
        labels = volumes_matching(root, f"{of_labels}/*")
        if images and labels:
            return images, match_labels(root, images, labels)
    if is_bids(root):
        return find_bids(root)
    images = _images_beside(root, [])
    labels = [path for path in images if is_named_as_labels(path)]
    images = [path for path in images if path not in set(labels)]
    return images, match_labels(root, images, labels) if labels else Matched({}, [])


def _images_beside(root: Path, labels: list[Path]) -> list[Path]:
    """Image files of a folder; where there are none, of ``images`` or ``imagesTr``, or of all
    folders in it.
    """
    taken = set(labels)
    for pattern in ("*", "images/*", "imagesTr/*", "img/*", "*/*", "**/*"):
        found = [path for path in volumes_matching(root, pattern) if path not in taken]
        if found:
            return found
    return []


def _first_channels(images: list[Path], matched: Matched) -> tuple[list[Path], list[Skipped]]:
    """Of several channels of one case (nnU-Net: one label map for all), the first."""
    kept: dict[tuple[Path, Path], Path] = {}
    skipped = []
    for image in sorted(images):
        label = matched.labels.get(image)
        found = _CHANNEL.fullmatch(stem(image))
        if label is None or found is None or stem(label) != found[1]:
            continue
        first = kept.setdefault((image.parent, label), image)
        if first != image:
            skipped.append(
                Skipped(
                    image, f"another channel of {first.name}; say images='*_{found[2]}*' to take it"
                )
            )
    dropped = {entry.path for entry in skipped}
    return [image for image in images if image not in dropped], skipped


def _check_count(root: Path, images: list[Path], asked: DatasetOptions) -> None:
    what = f"matches '{asked.images}'" if asked.images else "is an image"
    if not images:
        raise InputError(
            f"No file in {root} {what}; at least two images (.nii, .nii.gz, .mgz, .nrrd, .mha ...)"
            f" were expected.{_some(root)}"
        )
    if len(images) == 1:
        raise InputError(
            f"Only one file in {root} {what} ({images[0].name}). A pair takes two images: at least"
            " two were expected."
        )


def _some(root: Path) -> str:
    """A few of the files that there are, for a message."""
    files = sorted(p for p in root.rglob("*") if not p.name.startswith(".") and is_volume(p))
    if not files:
        return " The folder holds no image file at all."
    return f" It holds {len(files)} image files, such as {files[0].relative_to(root)}."


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
        A folder of images, a CSV or JSON list of pairs, Learn2Reg's ``<Task>_dataset.json`` or its
        folder, the folder of OASIS as neurite files it, or of BTCV.
    images : str, optional
        Which files are images, such as "images/*.nii.gz".
    labels : str, optional
        Which are label maps, such as "labels/*.nii.gz" (matched with the images by name), or how
        their names are made, such as "{name}_seg.nii.gz".
    subject : str, optional
        A regular expression with one group, which finds in a scan's name whose it is.  By default
        sub-XX in BIDS, OAS1_XXXX in OASIS, otherwise each scan is another person's.
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
        raise InputError(
            f"There is no file or folder {path}. Check the spelling and the folder you are in."
        )
    asked = DatasetOptions(images, labels, read_rule(subject), check_window(window), nan, channel)
    seen = _recognised(place, asked) if kind == "auto" else kind
    if seen == "list" or (seen == "learn2reg" and place.is_file()):
        if place.is_dir():
            raise InputError(
                f"{path} is a folder; a CSV or JSON file that lists pairs was expected."
            )
        if asked.images or asked.labels:
            raise InputError(
                f"{path} names its images and labels itself; leave out the patterns of names."
            )
        return read_listed(place, asked) if seen == "list" else read_learn2reg(place, asked)
    if not place.is_dir():
        raise InputError(f"{path} is a file; for the kind '{seen}' a folder was expected.")
    if seen == "learn2reg":
        description = find_description(place)
        if description is None:
            raise InputError(
                f"{path} holds no <Task>_dataset.json of Learn2Reg. Name the file itself."
            )
        return read_learn2reg(description, asked)
    if seen == "oasis":
        return read_oasis(place, asked)
    return read_btcv(place, asked) if seen == "btcv" else read_image_folder(place, asked)


def _recognised(place: Path, asked: DatasetOptions) -> str:
    """What a path holds."""
    if place.is_file():
        ending = place.suffix.lower()
        if ending == ".json":
            return "learn2reg" if is_description(place) else "list"
        if ending in (".csv", ".txt", ".tsv"):
            return "list"
        raise InputError(
            f"{place} is no data set: a folder of images, a CSV or JSON list of pairs, or a"
            " Learn2Reg <Task>_dataset.json was expected."
        )
    patterns = [pattern.removeprefix("*/") for pattern in (asked.images, asked.labels) if pattern]
    if is_oasis(place) and not any("/" in pattern or "{" in pattern for pattern in patterns):
        return "oasis"
    if not patterns and find_description(place) is not None:
        return "learn2reg"
    return "btcv" if not patterns and find_btcv(place) is not None else "folder"
