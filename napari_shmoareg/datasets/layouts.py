"""Known layouts of data sets: Learn2Reg, OASIS (neurite), BIDS, BTCV."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from napari_shmoareg.datasets.dataset import (
    Dataset,
    DatasetChoice,
    Scan,
    Skipped,
    Window,
    make_scans,
)
from napari_shmoareg.datasets.name_patterns import Matched, match_labels, matching, volumes_matching
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import stem
from napari_shmoareg.io.untrusted import is_there, read_json

_PAIRED = ("training_paired_images", "registration_val", "registration_test")
_KEYS = ("training", *_PAIRED[:2])


def find_description(root: Path) -> Path | None:
    """Find the one Learn2Reg description of a folder, or None."""
    found = [p for p in matching(root, "*_dataset.json") if is_description(p)]
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


def read_learn2reg(path: Path, options: DatasetChoice) -> Dataset:
    """Read the scans, pairs and parts of a Learn2Reg task: a ``<Task>_dataset.json``.

    Ours: subjects of ``registration_val`` are for validation, those of ``registration_test`` (if
    their images exist) for testing, and all other training images for training, though the training
    list names some of all three.  Label maps are those listed, or at the image's path with "images"
    replaced by "labels".
    """
    if not is_description(path):
        raise InputError(
            f"{path} describes no Learn2Reg task: a list under {', '.join(_KEYS)} was expected."
        )
    values = read_json(path, "the description of a data set")
    lists = {key: values.get(key) for key in (*_KEYS, *_PAIRED)}
    entries = {key: found if isinstance(found, list) else [] for key, found in lists.items()}
    labels: dict[Path, Path] = {}  # of all images, whether they exist or not

    def add(name: object, label: object = None) -> Path:
        if not isinstance(name, str) or not name or "\0" in name:
            raise InputError(
                f"{path}: an entry has no image (got {name!r}); a file name was expected."
            )
        own = label if isinstance(label, str) and label else name.replace("images", "labels")
        labels.setdefault(path.parent / name, path.parent / own)
        return path.parent / name

    for entry in entries["training"]:
        listed = entry if isinstance(entry, Mapping) else {"image": entry}
        add(listed.get("image"), listed.get("label"))
    files = {
        key: [
            (add(entry.get("moving")), add(entry.get("fixed")))
            for entry in (e if isinstance(e, Mapping) else {} for e in entries[key])
        ]
        for key in _PAIRED
    }
    existing = {image for image in labels if is_there(image)}
    skipped = [
        Skipped(image, f"listed in {path.name}, but missing")
        for image in labels
        if image not in existing
    ]
    if len(existing) < 2:
        raise InputError(
            f"{path} lists {len(labels)} images, of which {len(existing)} exist; at least two were"
            f" expected. File names are relative to {path.parent}; unpack the whole archive."
        )
    own = {i: label for i, label in labels.items() if label != i and is_there(label)}
    scans = make_scans(path.parent, existing, own, options.subject)
    names = {scan.image: scan.name for scan in scans}
    pairs = {
        key: tuple((names[m], names[f]) for m, f in files[key] if m in names and f in names)
        for key in _PAIRED
    }
    has_paired = bool(pairs["training_paired_images"])
    paired = tuple(dict.fromkeys(pair for key in _PAIRED for pair in pairs[key]))
    if has_paired:
        used = {name for pair in paired for name in pair}
        skipped += [
            Skipped(s.image, "it is in no listed pair") for s in scans if s.name not in used
        ]
        scans = tuple(scan for scan in scans if scan.name in used)
    judged = {"validation": pairs["registration_val"], "test": pairs["registration_test"]}
    return options.dataset(
        "learn2reg",
        path,
        scans,
        pairs=paired if has_paired else None,
        parts=_parts(scans, judged),
        skipped=tuple(skipped),
        part_pairs={} if has_paired else {part: found for part, found in judged.items() if found},
    )


def _parts(
    scans: tuple[Scan, ...], judged: Mapping[str, tuple[tuple[str, str], ...]]
) -> dict[str, tuple[str, ...]] | None:
    """Scans of training, validation and test; None if training or validation would be empty."""
    subjects = {scan.name: scan.subject for scan in scans}
    validation, test = (
        {subjects[name] for pair in judged[part] for name in pair}
        for part in ("validation", "test")
    )
    test -= validation
    train = set(subjects.values()) - validation - test
    if not train or not validation:
        return None
    by_part = {"train": train, "validation": validation, "test": test}
    return {
        part: tuple(s.name for s in scans if s.subject in side) for part, side in by_part.items()
    }


class Layout(NamedTuple):
    """A data set known by the names of its files.

    Attributes
    ----------
    title : str
    patterns : tuple of (folder, images, labels)
        As for `open_dataset`; the first whose files are there is used.
    expected : str
        Sentence for messages.
    unit : str
        What has one image each, for messages.
    scan : pattern or None
        Of the folder of a scan, with a group for the name of the scan; by default the file has it.
    window : (low, high) or None
        Default window.
    """

    title: str
    patterns: tuple[tuple[str, str, str], ...]
    expected: str
    unit: str = "files"
    scan: re.Pattern[str] | None = None
    window: Window | None = None


LAYOUTS = {
    # Sec. IV-A: skull-stripped images in scanner space, and 35 labels
    "oasis": Layout(
        "OASIS",
        (("", "*/norm.*", "*/seg35.*"),),
        "Neurite's files are norm, orig, aligned_norm and aligned_orig.",
        "folders OASIS_OAS1_XXXX_MR1",
        re.compile(r"(?:OASIS_)?(OAS\d_\d{4}_MR\d+)"),
    ),
    "btcv": Layout(
        "BTCV",
        tuple(
            (folder, images, labels)
            for folder in ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
            for images, labels in (
                ("img/img*.nii*", "label/label*.nii*"),
                ("imagesTr/img*.nii*", "labelsTr/label*.nii*"),
                (
                    "averaged-training-images/DET*_avg.nii*",
                    "averaged-training-labels/DET*_avg_seg.nii*",
                ),
            )
        ),
        "Folders img (img0001.nii.gz ...) and label (label0001.nii.gz ...), RawData/Training with"
        " these, or imagesTr and labelsTr were expected.",
        window=(-160.0, 240.0),  # Ours, HU, soft tissue: the paper gives no window
    ),
}


def find_layout(root: Path) -> str | None:
    """Find the layout of a folder: its folders of scans, or else its files."""
    for kind, layout in LAYOUTS.items():
        if _scan_folders(root, layout) or (layout.scan is None and _find_patterns(root, layout)):
            return kind
    return None


def _scan_folders(root: Path, layout: Layout) -> dict[Path, str]:
    """Folders of scans, with the names of the scans."""
    found = {f: layout.scan and layout.scan.fullmatch(f.name) for f in sorted(root.iterdir())}
    return {folder: match[1] for folder, match in found.items() if match and folder.is_dir()}


def _find_patterns(root: Path, layout: Layout) -> tuple[Path, str, str] | None:
    for folder, images, labels in layout.patterns:
        if any((root / folder).glob(images)) and any((root / folder).glob(labels)):
            return root / folder, images, labels
    return None


def read_layout(kind: str, root: Path, options: DatasetChoice) -> Dataset:
    """Read the scans of a data set with one of the `LAYOUTS`, or with other patterns.

    In folders of scans, patterns are names of files, such as "aligned_norm" (and then
    "aligned_seg35"), with or without extension; "*/" may precede.
    """
    layout = LAYOUTS[kind]
    folder, of_images, of_labels = _find_patterns(root, layout) or (root, *layout.patterns[0][1:])
    of_images, of_labels = options.images or of_images, options.labels or of_labels
    folders = _scan_folders(folder, layout)
    if layout.scan is not None:
        of_images, of_labels = (
            f"*/{stem(pattern.removeprefix('*/'))}.*" for pattern in (of_images, of_labels)
        )
        if of_images.startswith("*/aligned_") and not options.labels:
            of_labels = of_labels.replace("*/", "*/aligned_")
    images = volumes_matching(folder, of_images)
    if layout.scan is not None:  # one image of each folder
        first = {image.parent: image for image in reversed(images) if image.parent in folders}
        images = sorted(first.values())
    if len(images) < 2:
        aligned = of_images.replace("*/", "*/aligned_")
        remedy, more = "Give patterns of {images} and {labels}.", layout.expected
        if layout.scan and not options.images and volumes_matching(folder, aligned):
            remedy = "Give {images:aligned_norm} to use it."
            more = "They contain 'aligned_norm', which is already affinely aligned."
        raise InputError(
            f"{root} does not look like {layout.title}: {len(images)} of the {layout.unit} match"
            f" '{options.images or of_images}'; at least two were expected. {more}",
            remedy=remedy,
        )
    labels = volumes_matching(folder, of_labels)
    matched = match_labels(folder, images, labels, (of_images, of_labels))
    names = {image: folders[image.parent] for image in images if image.parent in folders}
    present = {image.parent for image in images}
    skipped = [
        Skipped(path, f"it contains no {of_images.removeprefix('*/').removesuffix('.*')}")
        for path in folders
        if path not in present
    ]
    return options.dataset(
        kind,
        root,
        make_scans(folder, images, matched.labels, options.subject, names),
        window=options.window or layout.window,
        skipped=(*skipped, *matched.skipped),
    )


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
    subjects = {(_entities(path).get("sub"), _suffix(path)) for path in images}
    counts = Counter(suffix for _, suffix in subjects)
    contrast = max(counts, key=lambda suffix: (counts[suffix], suffix == "T1w", suffix), default="")
    chosen = [path for path in images if _suffix(path) == contrast]
    skipped = [
        Skipped(
            path,
            f"another contrast than {contrast}; give images='sub-*/**/*_{_suffix(path)}.nii*' to"
            " use it",
        )
        for path in images
        if _suffix(path) != contrast
    ]
    labels = [
        path
        for path in files + volumes_matching(root, "derivatives/**/*")
        if _suffix(path) in _LABEL_SUFFIXES
    ]
    found: dict[Path, Path] = {}
    others: dict[Path, Path] = {}  # further label maps of an image
    for image in chosen:
        own = [label for label in labels if _matches(label, image)]
        if own:
            found[image], *rest = sorted(
                own, key=lambda p: (_is_elsewhere(p), -len(_entities(p)), p)
            )
            others |= dict.fromkeys(rest, image)
        elif labels:
            skipped.append(Skipped(image, "no label map matches its name: read without labels"))
    for label in labels:
        if label in found.values():
            continue
        why = "a label map whose name matches no image"
        if (other := others.get(label)) is not None:
            why = f"another label map of {other.name}; {found[other].name} is used"
        skipped.append(Skipped(label, why))
    return chosen, Matched(found, skipped)


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
