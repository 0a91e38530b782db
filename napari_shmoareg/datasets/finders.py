"""open_dataset: open a folder or a list of pairs as a Dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from napari_shmoareg.datasets.dataset import (
    Dataset,
    DatasetChoice,
    Skipped,
    check_window,
    compile_subject_pattern,
    make_scans,
)
from napari_shmoareg.datasets.layouts import (
    LAYOUTS,
    find_bids,
    find_description,
    find_layout,
    is_bids,
    is_description,
    read_layout,
    read_learn2reg,
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


def read_image_folder(root: Path, options: DatasetChoice) -> Dataset:
    """Open a folder of images as a data set.

    Without patterns: ``imagesTr`` and ``labelsTr`` or similar names; BIDS; otherwise all image
    files.  Files named as labels (``_seg``, ``_label``, ``_aseg``, ``_dseg``) are matched with the
    images by name.
    """
    images, matched = (
        _with_patterns(root, options) if options.images or options.labels else _found(root)
    )
    images, channels = _first_channels(images, matched)
    _check_count(root, images, options)
    skipped = (*matched.skipped, *channels)
    return options.dataset(
        "folder",
        root,
        make_scans(root, images, matched.labels, options.subject),
        skipped=tuple(sorted(skipped, key=lambda entry: (entry.path, entry.why))),
    )


def _with_patterns(root: Path, options: DatasetChoice) -> tuple[list[Path], Matched]:
    template = options.labels if options.labels and "{" in options.labels else None
    labels = volumes_matching(root, options.labels) if options.labels and not template else []
    if options.labels and not template and not labels:
        raise InputError(f"No label map in {root} matches '{options.labels}'.{_some(root)}")
    images = (
        volumes_matching(root, options.images) if options.images else _images_beside(root, labels)
    )
    if options.labels is None:
        return images, Matched({}, [])
    if template:
        matched = match_template(root, images, template, options.images)
        labels = list(matched.labels.values())
        images = [image for image in images if image not in labels]
        matched.skipped[:] = [entry for entry in matched.skipped if entry.path not in labels]
    else:
        images = [image for image in images if image not in labels]
        patterns = (options.images, options.labels) if options.images else None
        matched = match_labels(root, images, labels, patterns)
    if images and not matched.labels:
        raise InputError(
            f"No image in {root} has a label map that matches '{options.labels}': one image is"
            f" '{images[0].name}'{_such_as(matched, images)}. Give a pattern whose wildcard matches"
            " the same text as in the pattern of the images, or a template such as"
            " 'labels/{name}.nii.gz'."
        )
    return images, matched


def _such_as(matched: Matched, images: list[Path]) -> str:
    other = next((entry.path.name for entry in matched.skipped if entry.path not in images), None)
    return "" if other is None else f", one label map is '{other}'"


def _found(root: Path) -> tuple[list[Path], Matched]:
    """Find images and labels without patterns."""
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
    """Image files of a folder, else of ``images`` or ``imagesTr``, else of all its subfolders."""
    taken = set(labels)
    for pattern in ("*", "images/*", "imagesTr/*", "img/*", "*/*", "**/*"):
        found = [path for path in volumes_matching(root, pattern) if path not in taken]
        if found:
            return found
    return []


def _first_channels(images: list[Path], matched: Matched) -> tuple[list[Path], list[Skipped]]:
    """Keep the first of several channels of one case (nnU-Net: one label map for all)."""
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
                    image, f"another channel of {first.name}; give images='*_{found[2]}*' to use it"
                )
            )
    dropped = {entry.path for entry in skipped}
    return [image for image in images if image not in dropped], skipped


def _check_count(root: Path, images: list[Path], options: DatasetChoice) -> None:
    what = f"matches '{options.images}'" if options.images else "is an image"
    if not images:
        raise InputError(
            f"No file in {root} {what}; at least two images (.nii, .nii.gz, .mgz, .nrrd, .mha ...)"
            f" were expected.{_some(root)}"
        )
    if len(images) == 1:
        raise InputError(
            f"Only one file in {root} {what} ({images[0].name}); at least two images were expected."
        )


def _some(root: Path) -> str:
    """Sentence on the image files of a folder, for a message."""
    files = sorted(p for p in root.rglob("*") if not p.name.startswith(".") and is_volume(p))
    if not files:
        return " The folder contains no image files."
    return f" It contains {len(files)} image files, such as {files[0].relative_to(root)}."


KINDS = ("auto", "folder", "list", "learn2reg", *LAYOUTS)


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
    """Open a data set: find its scans, labels and pairs.  No image is read yet.

    Parameters
    ----------
    path : str or Path
        A folder of images, a CSV or JSON list of pairs, Learn2Reg's ``<Task>_dataset.json`` or its
        folder, a folder of OASIS in neurite's layout, or a folder of BTCV.
    images : str, optional
        Pattern of image files, such as "images/*.nii.gz".
    labels : str, optional
        Pattern of label maps, such as "labels/*.nii.gz" (matched with the images by name), or a
        template of their names, such as "{name}_seg.nii.gz".
    subject : str, optional
        A regular expression with one group that matches the subject in a scan's name.  By default
        sub-XX in BIDS, OAS1_XXXX in OASIS; otherwise each scan is a subject.
    kind : {"auto", "folder", "list", "learn2reg", "oasis", "btcv"}
    window : (low, high), optional
        Intensities are clipped to it; for BTCV -160 to 240 HU by default.
    nan, channel : optional
        As for `read_image`.

    Raises
    ------
    InputError
        If no data set is found; the message says what was expected.
    """
    if kind not in KINDS:
        raise InputError(f"The kind of a data set is one of {', '.join(KINDS)}; got {kind!r}.")
    source = user_path(path).absolute()
    if not source.exists():
        raise InputError(
            f"There is no file or folder {path}. Check the spelling and the working folder."
        )
    compile_subject_pattern(subject)
    options = DatasetChoice(
        str(path), images, labels, subject, kind, check_window(window), nan, channel
    )
    recognised = _recognised(source, options) if kind == "auto" else kind
    if recognised == "list" or (recognised == "learn2reg" and source.is_file()):
        if source.is_dir():
            raise InputError(
                f"{path} is a folder; a CSV or JSON file that lists pairs was expected."
            )
        if options.images or options.labels:
            raise InputError(
                f"{path} lists its images and labels itself; leave out the file patterns."
            )
        read = read_listed if recognised == "list" else read_learn2reg
        return read(source, options)
    if not source.is_dir():
        raise InputError(f"{path} is a file; for the kind '{recognised}' a folder was expected.")
    if recognised == "learn2reg":
        description = find_description(source)
        if description is None:
            raise InputError(
                f"{path} contains no <Task>_dataset.json of Learn2Reg. Give the file itself."
            )
        return read_learn2reg(description, options)
    if recognised in LAYOUTS:
        return read_layout(recognised, source, options)
    return read_image_folder(source, options)


def _recognised(source: Path, options: DatasetChoice) -> str:
    """Recognise the kind of data set of a path."""
    if source.is_file():
        ending = source.suffix.lower()
        if ending == ".json":
            return "learn2reg" if is_description(source) else "list"
        if ending in (".csv", ".txt", ".tsv"):
            return "list"
        raise InputError(
            f"{source} is no data set: a folder of images, a CSV or JSON list of pairs, or a"
            " Learn2Reg <Task>_dataset.json was expected."
        )
    patterns = [
        pattern.removeprefix("*/") for pattern in (options.images, options.labels) if pattern
    ]
    known = find_layout(source)
    if known is not None and LAYOUTS[known].scan is not None:
        return "folder" if any("/" in p or "{" in p for p in patterns) else known
    if patterns:
        return "folder"
    return "learn2reg" if find_description(source) is not None else known or "folder"
