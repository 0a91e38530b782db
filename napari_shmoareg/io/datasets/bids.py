"""BIDS: sub-XX/[ses-YY/]anat, with label maps beside the images or in derivatives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from napari_shmoareg.io.atomic import stem
from napari_shmoareg.io.datasets.name_matching import Matched, volumes_matching
from napari_shmoareg.io.datasets.scans import Skipped

_LABELS = {"dseg", "seg", "aseg", "aparcaseg", "label", "labels"}
_MASKS = {"mask", "probseg"}
_ENTITIES = ("sub", "ses", "run", "acq")


def is_bids(root: Path) -> bool:
    """Whether a folder has subjects with anatomical images as in BIDS."""
    return any(root.glob("sub-*/anat")) or any(root.glob("sub-*/ses-*/anat"))


def find_bids(root: Path) -> tuple[list[Path], Matched]:
    """The images of one contrast, and their label maps.

    Ours: the contrast that most subjects have, T1w before others.  A label map belongs to the image with
    the same subject, session, run and acquisition, as far as it names them; one in the image's own space
    comes before one in another.
    """
    files = volumes_matching(root, "sub-*/anat/*") + volumes_matching(root, "sub-*/ses-*/anat/*")
    images = [path for path in files if _suffix(path) not in _LABELS | _MASKS]
    often = Counter(suffix for _, suffix in {(_entities(path).get("sub"), _suffix(path)) for path in images})
    contrast = max(often, key=lambda suffix: (often[suffix], suffix == "T1w", suffix), default="")
    chosen = [path for path in images if _suffix(path) == contrast]
    others = [
        Skipped(path, f"another contrast than {contrast}; say images='sub-*/**/*_{_suffix(path)}.nii*' to take it")
        for path in images
        if _suffix(path) != contrast
    ]
    labels = [path for path in files if _suffix(path) in _LABELS]
    labels += [path for path in volumes_matching(root, "derivatives/**/*") if _suffix(path) in _LABELS]
    found, skipped = {}, []
    for image in chosen:
        own = [label for label in labels if _belongs(label, image)]
        if own:
            first, *rest = sorted(own, key=lambda p: (_is_elsewhere(p), -len(_entities(p)), p))
            found[image] = first
            skipped += [Skipped(p, f"another label map of {image.name}; {first.name} was taken") for p in rest]
        elif labels:
            skipped.append(Skipped(image, "no label map has its name: read without labels"))
    taken = {entry.path for entry in skipped} | set(found.values())
    skipped = [entry for entry in skipped if entry.path not in found.values()]
    skipped += [Skipped(p, "a label map that belongs to no image by its name") for p in labels if p not in taken]
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
