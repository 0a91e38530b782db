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
    find_subject,
    make_scans,
)
from napari_shmoareg.datasets.name_patterns import Matched, match_labels, matching, volumes_matching
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import ending, stem
from napari_shmoareg.io.untrusted import is_there, read_json

_KEYS = ("training", "training_paired_images", "registration_val")
_PAIRED = ("training_paired_images", "registration_val", "registration_test")


def find_description(root: Path) -> Path | None:
    """Find the one Learn2Reg description of a folder, or None.

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
            f"{root} contains several data sets: {', '.join(p.name for p in found)}. Give one of"
            " these files."
        )
    return found[0] if found else None


def is_description(path: Path) -> bool:
    """Whether a JSON file describes a data set as Learn2Reg does."""
    values = read_json(path, "the description of a data set")
    return isinstance(values, dict) and any(isinstance(values.get(key), list) for key in _KEYS)


def read_learn2reg(path: Path, options: DatasetOptions) -> Dataset:
    """Read the scans, pairs and parts of a Learn2Reg task.

    Ours: subjects of ``registration_val`` are for validation, those of ``registration_test`` (if
    their images exist) for testing, and all other training images for training, though the training
    list names some of all three.  Label maps are those listed, or at the image's path with "images"
    replaced by "labels".

    Parameters
    ----------
    path : Path
        The ``<Task>_dataset.json``, or a description with the same keys.
    options : DatasetOptions

    Raises
    ------
    InputError
        If the file is not such a description, or fewer than two of its images exist.
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
        _add_image(path, images, image, labels)
    listed: dict[str, list[tuple[Path, Path]]] = {}
    for key in _PAIRED:
        listed[key] = []
        for entry in _entries(values, key):
            moving, fixed = (
                entry.get(role) if isinstance(entry, Mapping) else None
                for role in ("moving", "fixed")
            )
            listed[key].append(
                (_add_image(path, images, moving, None), _add_image(path, images, fixed, None))
            )
    existing = {image for image in images if is_there(image)}
    skipped = [
        Skipped(image, f"listed in {path.name}, but missing")
        for image in images
        if image not in existing
    ]
    if len(existing) < 2:
        raise InputError(
            f"{path} lists {len(images)} images, of which {len(existing)} exist; at least two were"
            f" expected. File names are relative to {path.parent}; unpack the whole archive."
        )
    labels = {
        image: label_map
        for image in existing
        if (label_map := images[image]) is not None and is_there(label_map)
    }
    scans = make_scans(path.parent, existing, labels, options.subject_pattern)
    names = {scan.image: scan.name for scan in scans}
    pairs = {key: _named_pairs(names, listed[key]) for key in _PAIRED}
    paired = tuple(dict.fromkeys(pair for key in _PAIRED for pair in pairs[key]))
    has_paired = bool(pairs["training_paired_images"])
    if has_paired:
        used = {name for pair in paired for name in pair}
        skipped += [
            Skipped(s.image, "it is in no listed pair") for s in scans if s.name not in used
        ]
        scans = tuple(scan for scan in scans if scan.name in used)
    return Dataset(
        "learn2reg",
        path,
        scans,
        pairs=paired if has_paired else None,
        parts=_parts(scans, pairs),
        window=options.window,
        skipped=tuple(skipped),
        part_pairs={} if has_paired else _evaluation_pairs(pairs),
        nan=options.nan,
        channel=options.channel,
    )


def _entries(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key) or []
    return found if isinstance(found, list) else []


def _add_image(path: Path, images: dict[Path, Path | None], name: object, labels: object) -> Path:
    """Register an image and its labels."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{path}: an entry has no image (got {name!r}); a file name was expected.")
    image = path.parent / name
    own = path.parent / labels if isinstance(labels, str) and labels else None
    if images.get(image) is None:
        images[image] = own or path.parent / name.replace("images", "labels")
        if images[image] == image:
            images[image] = None
    return image


def _named_pairs(
    names: Mapping[Path, str], pairs: Iterable[tuple[Path, Path]]
) -> tuple[tuple[str, str], ...]:
    return tuple((names[m], names[f]) for m, f in pairs if m in names and f in names)


def _evaluation_pairs(
    pairs: Mapping[str, tuple[tuple[str, str], ...]],
) -> dict[str, tuple[tuple[str, str], ...]]:
    by_part = {"validation": pairs["registration_val"], "test": pairs["registration_test"]}
    return {part: listed for part, listed in by_part.items() if listed}


def _parts(
    scans: tuple[Scan, ...], pairs: Mapping[str, tuple[tuple[str, str], ...]]
) -> dict[str, tuple[str, ...]] | None:
    """Scans of training, validation and test; None if training or validation would be empty."""
    subjects = {scan.name: scan.subject for scan in scans}
    validation = {subjects[name] for pair in pairs["registration_val"] for name in pair}
    test = {subjects[name] for pair in pairs["registration_test"] for name in pair} - validation
    subjects_by_part = {
        "train": set(subjects.values()) - validation - test,
        "validation": validation,
        "test": test,
    }
    if not subjects_by_part["train"] or not validation:
        return None
    return {
        part: tuple(s.name for s in scans if s.subject in side)
        for part, side in subjects_by_part.items()
    }


_FOLDER = re.compile(r"(?:OASIS_)?(OAS\d_\d{4}_MR\d+)")
_IMAGES, _LABELS = "norm", "seg35"


def is_oasis(root: Path) -> bool:
    """Whether a folder contains folders of OASIS scans."""
    return any(_FOLDER.fullmatch(folder.name) and folder.is_dir() for folder in root.iterdir())


def read_oasis(root: Path, options: DatasetOptions) -> Dataset:
    """Read the scans of a folder of OASIS brains.

    Sec. IV-A: skull-stripped images in scanner space (``norm``) and 35 labels (``seg35``).

    Parameters
    ----------
    root : Path
    options : DatasetOptions
        `images` and `labels` choose other files of each scan's folder: "aligned_norm" (and then
        "aligned_seg35"), with or without extension; "*/" may precede.

    Raises
    ------
    InputError
        If fewer than two scans have such an image.
    """
    image_file = (options.images or _IMAGES).removeprefix("*/")
    prefix = "aligned_" if image_file.startswith("aligned_") else ""
    label_file = (options.labels or f"{prefix}{_LABELS}").removeprefix("*/")
    scans, skipped = [], []
    for folder in sorted(root.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            continue
        image, labels = _file(folder, image_file), _file(folder, label_file)
        if image is None:
            skipped.append(Skipped(folder, f"it contains no {image_file}"))
            continue
        if labels is None:
            skipped.append(
                Skipped(image, f"there is no {label_file} beside it: read without labels")
            )
        scans.append(
            Scan(
                match[1],
                find_subject(match[1], folder.name, options.subject_pattern),
                image,
                labels,
            )
        )
    folders = [item.path for item in skipped if item.path.is_dir()]
    if (
        len(scans) < 2
        and options.images is None
        and any(_file(folder, f"aligned_{_IMAGES}") for folder in folders)
    ):
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} contain '{_IMAGES}'."
            f" They contain 'aligned_{_IMAGES}', which is already affinely aligned.",
            remedy=f"Give {{images:aligned_{_IMAGES}}} to use it.",
        )
    if len(scans) < 2:
        raise InputError(
            f"{len(scans)} of the folders OASIS_OAS1_XXXX_MR1 in {root} contain '{image_file}'; at"
            " least two were expected. Neurite's files are norm, orig, aligned_norm and"
            " aligned_orig."
        )
    order = tuple(sorted(scans, key=lambda scan: scan.name))
    return Dataset(
        "oasis",
        root,
        order,
        window=options.window,
        skipped=tuple(skipped),
        nan=options.nan,
        channel=options.channel,
    )


def _file(folder: Path, name: str) -> Path | None:
    """The file of a folder with this name, with or without extension."""
    found = matching(folder, name if ending(name) else f"{name}.nii*") or matching(
        folder, f"{name}.mgz"
    )
    return found[0] if found else None


_LABEL_SUFFIXES = {"dseg", "seg", "aseg", "aparcaseg", "label", "labels"}
_MASKS = {"mask", "probseg"}
_ENTITIES = ("sub", "ses", "run", "acq")


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects with anatomical images as in BIDS."""
    return any(root.glob("sub-*/anat")) or any(root.glob("sub-*/ses-*/anat"))


def find_bids(root: Path) -> tuple[list[Path], Matched]:
    """Find the images of one contrast, and their label maps.

    Ours: the contrast that most subjects have, T1w preferred.  A label map matches the image with
    the same subject, session, run and acquisition, as far as it names them; one in the image's own
    space is preferred."""
    files = volumes_matching(root, "sub-*/anat/*") + volumes_matching(root, "sub-*/ses-*/anat/*")
    images = [path for path in files if _suffix(path) not in _LABEL_SUFFIXES | _MASKS]
    counts = Counter(
        suffix for _, suffix in {(_entities(path).get("sub"), _suffix(path)) for path in images}
    )
    contrast = max(counts, key=lambda suffix: (counts[suffix], suffix == "T1w", suffix), default="")
    chosen = [path for path in images if _suffix(path) == contrast]
    others = [
        Skipped(
            path,
            f"another contrast than {contrast}; give images='sub-*/**/*_{_suffix(path)}.nii*' to"
            " use it",
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
        own = [label for label in labels if _matches(label, image)]
        if own:
            first, *rest = sorted(own, key=lambda p: (_is_elsewhere(p), -len(_entities(p)), p))
            found[image] = first
            skipped += [
                Skipped(p, f"another label map of {image.name}; {first.name} is used") for p in rest
            ]
        elif labels:
            skipped.append(Skipped(image, "no label map matches its name: read without labels"))
    used = {entry.path for entry in skipped} | set(found.values())
    skipped = [entry for entry in skipped if entry.path not in found.values()]
    skipped += [
        Skipped(p, "a label map whose name matches no image") for p in labels if p not in used
    ]
    return chosen, Matched(found, [*others, *skipped])


def _entities(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)", stem(path)))


def _suffix(path: Path) -> str:
    return stem(path).rsplit("_", 1)[-1]


def _matches(label: Path, image: Path) -> bool:
    """Whether all entities in the name of a label map agree with the image."""
    of_label, of_image = _entities(label), _entities(image)
    named = [name for name in _ENTITIES if name in of_label]
    return "sub" in named and all(of_label[name] == of_image.get(name) for name in named)


def _is_elsewhere(path: Path) -> bool:
    return _entities(path).get("space", "T1w") not in ("T1w", "orig", "individual")


SOFT_TISSUE: Window = (-160.0, 240.0)  # Ours, HU: the paper gives no window
_INNER = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
_LAYOUTS = (
    ("img/img*.nii*", "label/label*.nii*"),
    ("imagesTr/img*.nii*", "labelsTr/label*.nii*"),
    ("averaged-training-images/DET*_avg.nii*", "averaged-training-labels/DET*_avg_seg.nii*"),
)


def find_btcv(root: Path) -> tuple[Path, str, str] | None:
    """Find BTCV's folder with its patterns of images and labels, or None."""
    for inner in _INNER:
        for images, labels in _LAYOUTS:
            folder = root / inner
            if any(folder.glob(images)) and any(folder.glob(labels)):
                return folder, images, labels
    return None


def read_btcv(root: Path, options: DatasetOptions) -> Dataset:
    """Read the scans of BTCV that have labels.

    Parameters
    ----------
    root : Path
        Contains ``img`` and ``label`` (or ``RawData/Training`` with these), ``imagesTr`` and
        ``labelsTr``, or ``averaged-training-images`` and ``averaged-training-labels``.
    options : DatasetOptions
        The default window is soft tissue, -160 to 240 HU.

    Raises
    ------
    InputError
        If there are no such folders, or fewer than two scans.
    """
    found = find_btcv(root)
    if found is None and not (options.images and options.labels):
        raise InputError(
            f"{root} does not look like BTCV: folders img (img0001.nii.gz ...) and label"
            " (label0001.nii.gz ...), RawData/Training with these, or imagesTr and labelsTr were"
            " expected.",
            remedy="Give patterns of {images} and {labels}.",
        )
    folder, of_images, of_labels = found or (root, "", "")
    of_images, of_labels = options.images or of_images, options.labels or of_labels
    images = volumes_matching(folder, of_images)
    if len(images) < 2:
        raise InputError(
            f"{len(images)} files in {folder} match '{of_images}'; at least two were expected."
        )
    matched = match_labels(
        folder, images, volumes_matching(folder, of_labels), (of_images, of_labels)
    )
    return Dataset(
        "btcv",
        root,
        make_scans(folder, images, matched.labels, options.subject_pattern),
        window=options.window or SOFT_TISSUE,
        skipped=tuple(matched.skipped),
        nan=options.nan,
        channel=options.channel,
    )
