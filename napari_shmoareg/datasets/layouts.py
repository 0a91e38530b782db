"""Known layouts of data sets: Learn2Reg, OASIS (neurite), BIDS, BTCV."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from napari_shmoareg.datasets.dataset import (
    Dataset,
    DatasetOptions,
    Scan,
    Skipped,
    Window,
    make_scans,
    subject_of,
)
from napari_shmoareg.datasets.name_patterns import Matched, match_labels, matching, volumes_matching
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import ending, stem
from napari_shmoareg.io.untrusted import is_there, read_json

_KEYS = ("training", "training_paired_images", "registration_val")
_PAIRED = ("training_paired_images", "registration_val", "registration_test")


def find_description(root: Path) -> Path | None:
    """The one description of a folder, or None.

    Raises
    ------
    InputError
        If there are several.
    """
    found = [
        p
        for p in sorted(root.glob("*_dataset.json"))
        if not p.name.startswith(".") and is_description(p)
    ]
    if len(found) > 1:
        raise InputError(
            f"{root} holds several data sets: {', '.join(p.name for p in found)}. Name one of these"
            " files."
        )
    return found[0] if found else None


def is_description(path: Path) -> bool:
    """Whether a JSON file describes a data set as Learn2Reg does."""
    values = read_json(path, "the description of a data set")
    return isinstance(values, dict) and any(isinstance(values.get(key), list) for key in _KEYS)


def read_learn2reg(path: Path, asked: DatasetOptions) -> Dataset:
    """The scans, pairs and parts of a Learn2Reg task.

    Ours: subjects of ``registration_val`` judge and those of ``registration_test`` (where their
    images are there) stay unseen; all other training images learn, though the list names some of
    both.

    Parameters
    ----------
    path : Path
        The ``<Task>_dataset.json``, or a description with the same keys.
    asked : DatasetOptions
        `labels` of an image: as listed, or at the same name with "images" replaced by "labels".

    Raises
    ------
    InputError
        If the file is not such a description, or fewer than two of its images are there.
    """
    values = read_json(path, "the description of a data set")
    if not isinstance(values, dict) or not any(isinstance(values.get(key), list) for key in _KEYS):
        raise InputError(
            f"{path} describes no Learn2Reg task: a list under {', '.join(_KEYS)} was expected."
        )
    images: dict[Path, Path | None] = {}
    for entry in _entries(values, "training"):
        listed_as = entry if isinstance(entry, Mapping) else {"image": entry}
        image, labels = listed_as.get("image"), listed_as.get("label")
        _take(path, images, image, labels)
    listed: dict[str, list[tuple[Path, Path]]] = {}
    for key in _PAIRED:
        listed[key] = []
        for entry in _entries(values, key):
            moving, fixed = (
                entry.get(role) if isinstance(entry, Mapping) else None
                for role in ("moving", "fixed")
            )
            listed[key].append(
                (_take(path, images, moving, None), _take(path, images, fixed, None))
            )
    there = {image for image in images if is_there(image)}
    skipped = [
        Skipped(image, f"{path.name} lists it, but it is not there")
        for image in images
        if image not in there
    ]
    if len(there) < 2:
        raise InputError(
            f"{path} lists {len(images)} images, of which {len(there)} are there; at least two were"
            f" expected. File names in it are relative to {path.parent}; unpack the archive whole."
        )
    labels = {
        image: place for image in there if (place := images[image]) is not None and is_there(place)
    }
    scans = make_scans(path.parent, there, labels, asked.rule)
    names = {scan.image: scan.name for scan in scans}
    pairs = {key: _named(names, listed[key]) for key in _PAIRED}
    paired = tuple(dict.fromkeys(pair for key in _PAIRED for pair in pairs[key]))
    has_paired = bool(pairs["training_paired_images"])
    if has_paired:
        used = {name for pair in paired for name in pair}
        skipped += [
            Skipped(s.image, "it stands in no listed pair") for s in scans if s.name not in used
        ]
        scans = tuple(scan for scan in scans if scan.name in used)
    return Dataset(
        "learn2reg",
        path,
        scans,
        pairs=paired if has_paired else None,
        parts=_parts(scans, pairs),
        window=asked.window,
        skipped=tuple(skipped),
        part_pairs={} if has_paired else _judged(pairs),
        nan=asked.nan,
        channel=asked.channel,
    )


def _entries(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key) or []
    return found if isinstance(found, list) else []


def _take(path: Path, images: dict[Path, Path | None], name: object, labels: object) -> Path:
    """Note an image and its labels."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(
            f"{path}: an entry names no image (got {name!r}); the name of a file was expected."
        )
    image = path.parent / name
    own = path.parent / labels if isinstance(labels, str) and labels else None
    if images.get(image) is None:
        images[image] = own or path.parent / name.replace("images", "labels")
        if images[image] == image:
            images[image] = None
    return image


def _named(
    names: Mapping[Path, str], pairs: Iterable[tuple[Path, Path]]
) -> tuple[tuple[str, str], ...]:
    return tuple((names[m], names[f]) for m, f in pairs if m in names and f in names)


def _judged(
    pairs: Mapping[str, tuple[tuple[str, str], ...]],
) -> dict[str, tuple[tuple[str, str], ...]]:
    by_part = {"validation": pairs["registration_val"], "test": pairs["registration_test"]}
    return {part: listed for part, listed in by_part.items() if listed}


def _parts(
    scans: tuple[Scan, ...], pairs: Mapping[str, tuple[tuple[str, str], ...]]
) -> dict[str, tuple[str, ...]] | None:
    """Who learns, judges and stays unseen; None where nobody is left on one of the first two
    sides.
    """
    whose = {scan.name: scan.subject for scan in scans}
    judge = {whose[name] for pair in pairs["registration_val"] for name in pair}
    unseen = {whose[name] for pair in pairs["registration_test"] for name in pair} - judge
    sides = {"train": set(whose.values()) - judge - unseen, "validation": judge, "test": unseen}
    if not sides["train"] or not judge:
        return None
    return {part: tuple(s.name for s in scans if s.subject in side) for part, side in sides.items()}


_FOLDER = re.compile(r"(?:OASIS_)?(OAS\d_\d{4}_MR\d+)")
_IMAGES, _LABELS = "norm", "seg35"


def is_oasis(root: Path) -> bool:
    """Whether a folder holds folders of OASIS scans."""
    return any(_FOLDER.fullmatch(place.name) and place.is_dir() for place in root.iterdir())


def read_oasis(root: Path, asked: DatasetOptions) -> Dataset:
    """The scans of a folder of OASIS brains.

    Sec. IV-A: skull-stripped images in the space of the scanner (``norm``) and 35 labels
    (``seg35``).

    Parameters
    ----------
    root : Path
    asked : DatasetOptions
        `images` and `labels` choose other files of each scan's folder: "aligned_norm" (and then
        "aligned_seg35"), with ending or without; "*/" may stand before.

    Raises
    ------
    InputError
        If fewer than two scans have such an image.
    """
    image_file = (asked.images or _IMAGES).removeprefix("*/")
    aligned = "aligned_" if image_file.startswith("aligned_") else ""
    label_file = (asked.labels or f"{aligned}{_LABELS}").removeprefix("*/")
    scans, skipped = [], []
    for place in sorted(root.iterdir()):
        known = _FOLDER.fullmatch(place.name)
        if known is None or not place.is_dir():
            continue
        image, labels = _file(place, image_file), _file(place, label_file)
        if image is None:
            skipped.append(Skipped(place, f"it holds no {image_file}"))
            continue
        if labels is None:
            skipped.append(
                Skipped(image, f"there is no {label_file} beside it: read without labels")
            )
        scans.append(Scan(known[1], subject_of(known[1], place.name, asked.rule), image, labels))
    places = [item.path for item in skipped if item.path.is_dir()]
    if (
        len(scans) < 2
        and asked.images is None
        and any(_file(place, f"aligned_{_IMAGES}") for place in places)
    ):
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} hold a file '{_IMAGES}'."
            f" They hold 'aligned_{_IMAGES}', which is affinely aligned already.",
            remedy=f"Give {{images:aligned_{_IMAGES}}} to take it.",
        )
    if len(scans) < 2:
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} hold a file '{image_file}';"
            " at least two scans were expected. As neurite files them, there are norm, orig,"
            " aligned_norm and aligned_orig."
        )
    order = tuple(sorted(scans, key=lambda scan: scan.name))
    return Dataset(
        "oasis",
        root,
        order,
        window=asked.window,
        skipped=tuple(skipped),
        nan=asked.nan,
        channel=asked.channel,
    )


def _file(place: Path, name: str) -> Path | None:
    """The file of a folder with this name, or this name and any ending."""
    found = matching(place, name if ending(name) else f"{name}.nii*") or matching(
        place, f"{name}.mgz"
    )
    return found[0] if found else None


_LABEL_SUFFIXES = {"dseg", "seg", "aseg", "aparcaseg", "label", "labels"}
_MASKS = {"mask", "probseg"}
_ENTITIES = ("sub", "ses", "run", "acq")


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects with anatomical images as in BIDS."""
    return any(root.glob("sub-*/anat")) or any(root.glob("sub-*/ses-*/anat"))


def find_bids(root: Path) -> tuple[list[Path], Matched]:
    """The images of one contrast, and their label maps.

    Ours: the contrast that most subjects have, T1w before others.  A label map belongs to the image
    with the same subject, session, run and acquisition, as far as it names them; one in the image's
    own space comes before one in another."""
    files = volumes_matching(root, "sub-*/anat/*") + volumes_matching(root, "sub-*/ses-*/anat/*")
    images = [path for path in files if _suffix(path) not in _LABEL_SUFFIXES | _MASKS]
    often = Counter(
        suffix for _, suffix in {(_entities(path).get("sub"), _suffix(path)) for path in images}
    )
    contrast = max(often, key=lambda suffix: (often[suffix], suffix == "T1w", suffix), default="")
    chosen = [path for path in images if _suffix(path) == contrast]
    others = [
        Skipped(
            path,
            f"another contrast than {contrast}; say images='sub-*/**/*_{_suffix(path)}.nii*' to"
            " take it",
        )
        for path in images
        if _suffix(path) != contrast
    ]
    labels = [path for path in files if _suffix(path) in _LABEL_SUFFIXES]
    labels += [
        path
        for path in volumes_matching(root, "derivatives/**/*")
        if _suffix(path) in _LABEL_SUFFIXES
    ]
    found, skipped = {}, []
    for image in chosen:
        own = [label for label in labels if _belongs(label, image)]
        if own:
            first, *rest = sorted(own, key=lambda p: (_is_elsewhere(p), -len(_entities(p)), p))
            found[image] = first
            skipped += [
                Skipped(p, f"another label map of {image.name}; {first.name} was taken")
                for p in rest
            ]
        elif labels:
            skipped.append(Skipped(image, "no label map has its name: read without labels"))
    taken = {entry.path for entry in skipped} | set(found.values())
    skipped = [entry for entry in skipped if entry.path not in found.values()]
    skipped += [
        Skipped(p, "a label map that belongs to no image by its name")
        for p in labels
        if p not in taken
    ]
    return chosen, Matched(found, [*others, *skipped])


def _entities(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)", stem(path)))


def _suffix(path: Path) -> str:
    return stem(path).rsplit("_", 1)[-1]


def _belongs(label: Path, image: Path) -> bool:
    """Whether a label map names nothing that the image does not agree with."""
    of_label, of_image = _entities(label), _entities(image)
    named = [name for name in _ENTITIES if name in of_label]
    return "sub" in named and all(of_label[name] == of_image.get(name) for name in named)


def _is_elsewhere(path: Path) -> bool:
    return _entities(path).get("space", "T1w") not in ("T1w", "orig", "individual")


SOFT_TISSUE: Window = (-160.0, 240.0)  # Ours, in HU: the paper names no window
_INNER = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
_LAYOUTS = (
    ("img/img*.nii*", "label/label*.nii*"),
    ("imagesTr/img*.nii*", "labelsTr/label*.nii*"),
    ("averaged-training-images/DET*_avg.nii*", "averaged-training-labels/DET*_avg_seg.nii*"),
)


def find_btcv(root: Path) -> tuple[Path, str, str] | None:
    """The folder with BTCV's two folders, and the patterns of images and labels; None if there are
    none.
    """
    for inner in _INNER:
        for images, labels in _LAYOUTS:
            place = root / inner
            if any(place.glob(images)) and any(place.glob(labels)):
                return place, images, labels
    return None


def read_btcv(root: Path, asked: DatasetOptions) -> Dataset:
    """The scans of BTCV that have labels.

    Parameters
    ----------
    root : Path
        Holds ``img`` and ``label`` (or ``RawData/Training`` with them), ``imagesTr`` and
        ``labelsTr``, or ``averaged-training-images`` and ``averaged-training-labels``.
    asked : DatasetOptions
        The window is that of soft tissue, -160 to 240 HU, unless another is given.

    Raises
    ------
    InputError
        If there are no such folders, or fewer than two scans.
    """
    found = find_btcv(root)
    if found is None and not (asked.images and asked.labels):
        raise InputError(
            f"{root} does not look like BTCV: folders img (img0001.nii.gz ...) and label"
            " (label0001.nii.gz ...), RawData/Training with these, or imagesTr and labelsTr were"
            " expected.",
            remedy="Give patterns of {images} and {labels}.",
        )
    place, of_images, of_labels = found or (root, "", "")
    of_images, of_labels = asked.images or of_images, asked.labels or of_labels
    images = volumes_matching(place, of_images)
    if len(images) < 2:
        raise InputError(
            f"{len(images)} files in {place} match '{of_images}'; at least two were expected."
        )
    matched = match_labels(
        place, images, volumes_matching(place, of_labels), (of_images, of_labels)
    )
    return Dataset(
        "btcv",
        root,
        make_scans(place, images, matched.labels, asked.rule),
        window=asked.window or SOFT_TISSUE,
        skipped=tuple(matched.skipped),
        nan=asked.nan,
        channel=asked.channel,
    )
