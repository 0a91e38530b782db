"""Matching of label maps with images by file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from napari_shmoareg.datasets.dataset import Skipped, descriptive_folders
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import ending, stem
from napari_shmoareg.io.images import ITK_ENDINGS, NIFTI_ENDINGS

_ROLES = (
    r"(?:d|a)?seg(?:mentation)?s?|label(?:map)?s?|masks?|aparc\+aseg|aparcaseg|wmparc|parc|gt|annotation|"
    r"brain|images?|img|scan|vol(?:ume)?|t1w?|t2w?|flair|ct|mri?|norm|orig|raw"
)
_WORD = re.compile(rf"(?:{_ROLES})\d*")
_FRONT = re.compile(rf"^(?:{_ROLES})[-_.]?(?=\d)")
_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]")


class Matched(NamedTuple):
    """Label maps by image, and files without a partner."""

    labels: dict[Path, Path]
    skipped: list[Skipped]


def matching(folder: Path, pattern: str) -> list[Path]:
    """List the entries of a folder that match a pattern, sorted, without hidden ones."""
    try:
        return sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))
    except (ValueError, RuntimeError, IndexError) as error:  # of an empty or an absolute pattern
        raise InputError(
            f"'{pattern}' is not a file pattern such as 'images/*.nii.gz' ({error})."
        ) from error


def volumes_matching(folder: Path, pattern: str) -> list[Path]:
    """As `matching`, restricted to volumes: image files and folders of DICOM slices."""
    return [p for p in matching(folder, pattern) if is_volume(p)]


def is_volume(path: Path) -> bool:
    """Whether a path is an image file by its extension, or a folder with DICOM slices."""
    if path.is_dir():
        return any(ending(file) in (".dcm", ".ima") for file in path.iterdir())
    return ending(path) in (*NIFTI_ENDINGS, *ITK_ENDINGS)


def match_labels(
    root: Path,
    images: Sequence[Path],
    labels: Sequence[Path],
    patterns: tuple[str, str] | None = None,
) -> Matched:
    """Match each image with the label map of the same name.

    Ours: compared in this order, as far as unique to one image: the text that the wildcards of both
    patterns match; folders and name; the name; the same without words such as seg, label, brain or
    t1w; finally a label map whose name is the beginning of the image's (``case7`` for
    ``case7_0000``).
    """
    found: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    common = Counter(_tail(path) for path in labels)
    for name_image, name_label in _levels(root, patterns):
        ids = Counter(name_image(image) for image in images)
        free = [image for image in images if image not in found]
        used = set(found.values())
        by_id: dict[str, list[Path]] = {}
        for label in labels:
            if label not in used:
                by_id.setdefault(name_label(label) or "", []).append(label)
        for image in free:
            named = name_image(image)
            if named and ids[named] == 1 and named in by_id:
                first, *others = sorted(by_id[named], key=lambda p: (-common[_tail(p)], p))
                found[image] = first
                skipped += [
                    Skipped(p, f"another label map of {image.name}; {first.name} is used")
                    for p in others
                ]
    used = set(found.values()) | {entry.path for entry in skipped}
    rest = {_key(label): label for label in reversed(sorted(labels)) if label not in used}
    for image in images:
        if image in found:
            continue
        starts = [key for key in rest if key and _key(image).startswith(f"{key}_")]
        if starts:
            found[image] = rest[max(starts, key=len)]
    skipped = [entry for entry in skipped if entry.path not in found.values()]
    used = set(found.values()) | {entry.path for entry in skipped}
    skipped += [
        Skipped(p, "a label map whose name matches no image") for p in labels if p not in used
    ]
    skipped += [
        Skipped(p, "no label map matches its name: read without labels")
        for p in images
        if p not in found
    ]
    return Matched(found, skipped)


def match_template(
    root: Path, images: Sequence[Path], template: str, pattern: str | None
) -> Matched:
    """Match each image with the label map whose name follows from a template.

    It is such as ``labels/{name}.nii.gz`` or ``{name}_seg.nii.gz``, within root or the image's
    folder; {name} is the image's name without extension, or the text that the wildcards in the
    pattern of the images match.
    """
    found: dict[Path, Path] = {}
    skipped: list[Skipped] = []
    for image in images:
        names = [stem(image), _captured(root, pattern, image) if pattern else None, _key(image)]
        try:
            files = [template.format(name=name) for name in names if name]
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                "A template for label maps has one field, {name}, as in '{name}_seg.nii.gz';"
                f" got '{template}'."
            ) from error
        candidates = [folder / file for file in files for folder in (root, image.parent)]
        label_file = next((p for p in candidates if p.is_file() and p != image), None)
        if label_file is None:
            skipped.append(Skipped(image, f"there is no {candidates[0]}: read without labels"))
        else:
            found[image] = label_file
    return Matched(found, skipped)


_Naming = Callable[[Path], str | None]


def _levels(root: Path, patterns: tuple[str, str] | None) -> list[tuple[_Naming, _Naming]]:
    """Functions that name an image and a label map, the strictest first."""

    def with_folders(path: Path) -> str:
        return "/".join((*descriptive_folders(root, path), stem(path)))

    def with_folders_key(path: Path) -> str:
        return "/".join((*descriptive_folders(root, path), _key(path)))

    levels: list[tuple[_Naming, _Naming]] = [
        (f, f) for f in (with_folders, stem, with_folders_key, _key)
    ]
    if patterns is not None and _GLOB.search(patterns[0]) and _GLOB.search(patterns[1]):
        of_images, of_labels = patterns
        for deep in (False, True):  # without the text of **, then with it
            naming = [
                partial(_captured, root, pattern, deep=deep) for pattern in (of_images, of_labels)
            ]
            levels.insert(0, (naming[0], naming[1]))
    return levels


def _key(path: Path) -> str:
    """The name of a file without words for the kind of image."""
    name = _FRONT.sub("", stem(path).lower())
    return "_".join(word for word in re.split(r"[_. ]", name) if word and not _WORD.fullmatch(word))


def _tail(path: Path) -> str:
    """Folder and last word of a file name: the same for label maps of one kind."""
    return f"{path.parent.name}/{re.split('[_.]', stem(path))[-1].lower()}"


def _captured(root: Path, pattern: str, path: Path, *, deep: bool = True) -> str | None:
    """Text that the wildcards of a pattern match in a path (** only if deep), or None."""
    if not path.is_relative_to(root):
        return None
    text, last = "", 0
    for sign in _GLOB.finditer(pattern):
        text += re.escape(pattern[last : sign.start()])
        wild = {
            "**/": "(?:(.*)/)?" if deep else "(?:.*/)?",
            "**": "(.*)",
            "*": "([^/]*)",
            "?": "([^/])",
        }
        text += wild.get(sign[0], f"({sign[0].replace('[!', '[^')})")
        last = sign.end()
    found = re.fullmatch(text + re.escape(pattern[last:]), path.relative_to(root).as_posix())
    if found is None:
        return None
    groups = [group or "" for group in found.groups()]
    if groups and last == len(pattern):  # an image and its label map may have other endings
        end = ending(path)
        groups[-1] = "" if end.endswith(groups[-1]) else groups[-1].removesuffix(end)
    return "|".join(groups)
