"""What a scan is called, and whose it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import stem
from napari_shmoareg.io.datasets.scans import Scan
from napari_shmoareg.io.untrusted import printable

# Ours: names that say who it is, whatever session, series or file it is of.
_RULES = (
    re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)"),  # BIDS
    re.compile(r"(OAS[12]_\d{4})_MR\d"),  # OASIS-1 and -2
    re.compile(r"(OAS3\d{4})(?:_MR|/)"),  # OASIS-3
    re.compile(r"^(?:.*/)?([^/]+_\d{4})_\d{4}$"),  # Learn2Reg: task, subject, session
)
_ROLE_FOLDERS = re.compile(
    r"(images?|labels?|img|scans?|segs?|masks?|segmentations?|annotations)([-_ ]?(tr|ts|va|train|training|test))?"
    r"|anat|training|rawdata|derivatives|averaged-training-(images|labels)",
    re.IGNORECASE,
)


def place_in(root: Path, path: Path) -> tuple[str, ...]:
    """The folders between root and a file that say more than that images or labels lie in them."""
    inner = path.parent.relative_to(root) if path.parent.is_relative_to(root) else Path(path.parent.name)
    return tuple(part for part in inner.parts if not _ROLE_FOLDERS.fullmatch(part))


def scan_names(root: Path, images: Sequence[Path]) -> dict[Path, str]:
    """A unique name for each image: of the file, with its folders where that is not enough."""
    short = {path: printable(path.name if path.is_dir() else stem(path)) for path in images}
    longer = {path: printable("/".join((*place_in(root, path), short[path]))) for path in images}
    whole = {path: printable(str(path.parent / short[path])) for path in images}
    chosen: dict[Path, str] = {}
    for names in (short, longer, whole):
        often = Counter(names[path] for path in images)
        chosen |= {path: names[path] for path in images if path not in chosen and often[names[path]] == 1}
    return chosen | {path: printable(str(path)) for path in images if path not in chosen}


def read_rule(subject: str | None) -> re.Pattern[str] | None:
    """A user's rule for the subject of a name.

    Raises
    ------
    InputError
        If it is no regular expression with one group.
    """
    if subject is None:
        return None
    example = r"such as '(sub-\d+)_.*'"
    try:
        rule = re.compile(subject)
    except re.error as error:
        raise InputError(
            f"The subject is found by a regular expression with one group, {example}; '{subject}' is none ({error})."
        ) from error
    if rule.groups != 1:
        raise InputError(
            f"The subject is what one group ( ) of a regular expression finds, {example}; '{subject}' has "
            f"{rule.groups}. Write (?: ) for a group that is not meant."
        )
    return rule


def subject_of(name: str, place: str, rule: re.Pattern[str] | None) -> str:
    """Whose scan it is.

    Parameters
    ----------
    name : str
        Of the scan.
    place : str
        Its file within the data set, with / and without ending.
    rule : pattern or None
        The user's; looked for in the name, then in the place.

    Raises
    ------
    InputError
        If the user's rule finds nothing.
    """
    if rule is not None:
        found = rule.search(name) or rule.search(place)
        if found is None or not found[1]:
            raise InputError(
                f"The rule '{rule.pattern}' finds no subject in '{name}' nor in '{place}'. Mend the rule, so that "
                "every scan has a subject."
            )
        return found[1]
    for known in _RULES:
        found = known.search(name) or known.search(place)
        if found is not None:
            return found[1]
    return name


def make_scans(
    root: Path, images: Iterable[Path], labels: Mapping[Path, Path], rule: re.Pattern[str] | None
) -> tuple[Scan, ...]:
    """Scans in the order of their names."""
    paths = sorted(set(images))
    names = scan_names(root, paths)
    scans = []
    for path in paths:
        inner = path.relative_to(root) if path.is_relative_to(root) else path
        place = (inner.with_name(stem(inner)) if inner.name else inner).as_posix()
        scans.append(Scan(names[path], subject_of(names[path], place, rule), path, labels.get(path)))
    return tuple(sorted(scans, key=lambda scan: scan.name))
