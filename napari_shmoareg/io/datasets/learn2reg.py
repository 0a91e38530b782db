"""Learn2Reg: a <Task>_dataset.json beside imagesTr, labelsTr and imagesTs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.datasets.asked import Asked
from napari_shmoareg.io.datasets.scans import Dataset, Scan, Skipped
from napari_shmoareg.io.datasets.subjects import make_scans
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
    found = [p for p in sorted(root.glob("*_dataset.json")) if not p.name.startswith(".") and is_description(p)]
    if len(found) > 1:
        raise InputError(
            f"{root} holds several data sets: {', '.join(p.name for p in found)}. Name one of these files."
        )
    return found[0] if found else None


def is_description(path: Path) -> bool:
    """Whether a JSON file describes a data set as Learn2Reg does."""
    values = read_json(path, "the description of a data set")
    return isinstance(values, dict) and any(isinstance(values.get(key), list) for key in _KEYS)


def read_learn2reg(path: Path, asked: Asked) -> Dataset:
    """The scans, pairs and parts of a Learn2Reg task.

    Ours: subjects of ``registration_val`` judge and those of ``registration_test`` (where their images are
    there) stay unseen; all other training images learn, though the list names some of both.

    Parameters
    ----------
    path : Path
        The ``<Task>_dataset.json``, or a description with the same keys.
    asked : Asked
        `labels` of an image: as listed, or at the same name with "images" replaced by "labels".

    Raises
    ------
    InputError
        If the file is not such a description, or fewer than two of its images are there.
    """
    values = read_json(path, "the description of a data set")
    if not isinstance(values, dict) or not any(isinstance(values.get(key), list) for key in _KEYS):
        raise InputError(f"{path} describes no Learn2Reg task: a list under {', '.join(_KEYS)} was expected.")
    images: dict[Path, Path | None] = {}
    for entry in _entries(values, "training"):
        listed_as = entry if isinstance(entry, Mapping) else {"image": entry}
        image, labels = listed_as.get("image"), listed_as.get("label")
        _take(path, images, image, labels)
    listed: dict[str, list[tuple[Path, Path]]] = {}
    for key in _PAIRED:
        listed[key] = []
        for entry in _entries(values, key):
            moving, fixed = (entry.get(role) if isinstance(entry, Mapping) else None for role in ("moving", "fixed"))
            listed[key].append((_take(path, images, moving, None), _take(path, images, fixed, None)))
    there = {image for image in images if is_there(image)}
    skipped = [Skipped(image, f"{path.name} lists it, but it is not there") for image in images if image not in there]
    if len(there) < 2:
        raise InputError(
            f"{path} lists {len(images)} images, of which {len(there)} are there; at least two were expected. File "
            f"names in it are relative to {path.parent}; unpack the archive whole."
        )
    labels = {image: place for image in there if (place := images[image]) is not None and is_there(place)}
    scans = make_scans(path.parent, there, labels, asked.rule)
    names = {scan.image: scan.name for scan in scans}
    pairs = {key: _named(names, listed[key]) for key in _PAIRED}
    paired = tuple(dict.fromkeys(pair for key in _PAIRED for pair in pairs[key]))
    has_paired = bool(pairs["training_paired_images"])
    if has_paired:
        used = {name for pair in paired for name in pair}
        skipped += [Skipped(s.image, "it stands in no listed pair") for s in scans if s.name not in used]
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
        raise InputError(f"{path}: an entry names no image (got {name!r}); the name of a file was expected.")
    image = path.parent / name
    own = path.parent / labels if isinstance(labels, str) and labels else None
    if images.get(image) is None:
        images[image] = own or path.parent / name.replace("images", "labels")
        if images[image] == image:
            images[image] = None
    return image


def _named(names: Mapping[Path, str], pairs: Iterable[tuple[Path, Path]]) -> tuple[tuple[str, str], ...]:
    return tuple((names[m], names[f]) for m, f in pairs if m in names and f in names)


def _judged(pairs: Mapping[str, tuple[tuple[str, str], ...]]) -> dict[str, tuple[tuple[str, str], ...]]:
    by_part = {"validation": pairs["registration_val"], "test": pairs["registration_test"]}
    return {part: listed for part, listed in by_part.items() if listed}


def _parts(
    scans: tuple[Scan, ...], pairs: Mapping[str, tuple[tuple[str, str], ...]]
) -> dict[str, tuple[str, ...]] | None:
    """Who learns, judges and stays unseen; None where nobody is left on one of the first two sides."""
    whose = {scan.name: scan.subject for scan in scans}
    judge = {whose[name] for pair in pairs["registration_val"] for name in pair}
    unseen = {whose[name] for pair in pairs["registration_test"] for name in pair} - judge
    sides = {"train": set(whose.values()) - judge - unseen, "validation": judge, "test": unseen}
    if not sides["train"] or not judge:
        return None
    return {part: tuple(s.name for s in scans if s.subject in side) for part, side in sides.items()}
