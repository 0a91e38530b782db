"""Names of structures by label: colour tables, label descriptions, data set files, FreeSurfer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import LabelNames, Volume
from napari_shmoareg.io.files import ending, stem
from napari_shmoareg.io.untrusted import (
    names_input,
    parse_csv,
    printable,
    read_object,
    read_text,
    user_path,
)

WHAT = (
    "names of labels (a FreeSurfer or 3D Slicer colour table, an ITK-SNAP label description, a CSV"
    " or TSV table with the columns index and name, or a dataset.json)"
)
FILTER = "Names of labels (*.ctbl *.txt *.label *.lut *.json *.csv *.tsv);;All files (*)"
LARGEST_FILE = 8 * 2**20  # bytes; FreeSurfer's own table has 0.1 MB
LONGEST_NAME = 120  # characters; longer ones are cut
LARGEST_LABEL = 2**53
DATASET = "dataset.json"
GUESSED = "FreeSurfer's codes (guessed from the label values)"

_SNAP = re.compile(r'(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+\d+\s+\d+\s+"(.*)"')
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_COLUMNS = {
    "label": ("labelvalue", "label", "index", "value", "id"),
    "name": ("name", "structure"),
}
_UNNAMED = {"", "(none)"}
Entries = Iterator[tuple[object, object]]


@names_input
def read_label_names(path: str | Path) -> LabelNames:
    """Read names of labels from a file of any of the supported kinds.

    Parameters
    ----------
    path : str or Path
        A colour table of FreeSurfer or 3D Slicer (number, name, colour), a label description file
        of ITK-SNAP, a CSV or TSV table (columns index and name, as in BIDS), or a ``dataset.json``
        of the Medical Decathlon or nnU-Net, which map numbers to names or names to numbers.

    Returns
    -------
    LabelNames
        Their source is the name of the file.

    Raises
    ------
    InputError
        If the file is missing, too large, not text, or names no label.

    Warns
    -----
    UserWarning
        If some of its lines are not understood; the others are used.
    """
    path = user_path(path)
    kind = ending(path)
    if kind == ".json":
        entries = _json_entries(path)
    elif kind in (".csv", ".tsv"):
        entries = _table_entries(path)
    else:
        entries = _text_entries(path)
    names: dict[int, str] = {}
    for number, name in entries:
        label, text = _label(number), _name(name)
        if label is not None and text.lower() not in _UNNAMED:
            own = names.get(label, text)  # of two different names, both
            names[label] = text if own == text else _name(f"{own} / {text}")
    if not names:
        raise InputError(f"{path} names no label; {WHAT} was expected.")
    return LabelNames(names, printable(path.name))


def find_label_names(path: str | Path, labels: Collection[int]) -> LabelNames:
    """Find the names of the labels of a map.

    In this order: a file of names with the map's own file name; ``dataset.json`` in its folder or
    the one above, if it names all labels or the map lies in ``labels*``; a table of BIDS whose
    name ends the map's (``dseg.tsv``), up to four folders above; the only colour table or label
    description in its folder, if it names all labels; FreeSurfer's codes, if the labels look like
    them (`freesurfer_names`).

    Parameters
    ----------
    path : str or Path
        The label map.
    labels : collection of int
        Its labels.

    Returns
    -------
    LabelNames
        Of these labels; empty if there are none. A damaged file is skipped.

    Warns
    -----
    UserWarning
        If a file that was found is damaged.
    """
    path, found = user_path(path), set(labels) - {0}
    for file, all_needed in _files_beside(path):
        if file.name == DATASET and not _describes_labels(file):
            continue
        names = _read_or_warn(file).within(sorted(found))
        if names and not (all_needed and found - set(names.names)):
            return names
    return freesurfer_names(found)


def name_labels(volume: Volume, path: str | Path, given: LabelNames | None = None) -> Volume:
    """Return a label map with the names of its labels: the given ones, else `find_label_names`."""
    if not volume.is_labels:
        return volume
    names = find_label_names(path, volume.labels) if given is None else given
    return replace(volume, label_names=names)


def reported_names(report: Mapping[str, Any]) -> LabelNames:
    """Return the names of the labels in a report.json; empty for one without names."""
    names = {int(label): _name(name) for label, name in (report.get("label_names") or {}).items()}
    return LabelNames(names, _name(report.get("label_names_from") or ""))


def _files_beside(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield files that may name the labels, and whether they have to name all of them."""
    folder, name = path.parent, stem(path)
    own = [f"{name}{tail}" for tail in (".ctbl", ".label", ".lut", "LUT.txt", "_LUT.txt")]
    for file in (folder / each for each in own):
        if file.is_file():
            yield file, False
    # labels, labelsTr and so on, as the data set's own layout has it; else it may be another map
    of_dataset = folder.name.lower().startswith("labels")
    for file in (folder / DATASET, folder.parent / DATASET):
        if file.is_file():
            yield file, not of_dataset
    for parent in [folder, *folder.parents][:5] if name.endswith("dseg") else ():
        for file in _entries_of(parent, lambda file: file.name.endswith("dseg.tsv")):
            if f"_{name}".endswith(f"_{stem(file)}"):
                yield file, False
    tables = _entries_of(
        folder,
        lambda file: ending(file) in (".ctbl", ".label", ".lut") or file.name.endswith("LUT.txt"),
    )
    if len(tables) == 1:
        yield tables[0], True


def _entries_of(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """The wanted files of a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(file for file in folder.iterdir() if wanted(file) and file.is_file())
    except OSError:
        return []  # above the map's own folder, a missing right to list is nobody's concern


def _describes_labels(path: Path) -> bool:
    """Whether a dataset.json has labels, as others of that name have not; True if damaged."""
    try:
        return "labels" in read_object(path, WHAT, limit=LARGEST_FILE)
    except InputError:
        return True  # it is read again, with a warning


def _read_or_warn(path: Path) -> LabelNames:
    try:
        return read_label_names(path)
    except InputError as error:
        warnings.warn(f"Names of labels: {error} It was not used.", UserWarning, stacklevel=3)
        return LabelNames()


def _json_entries(path: Path) -> Entries:
    """Number and name of the labels of a dataset.json, in either order; regions are left out."""
    labels = read_object(path, WHAT, limit=LARGEST_FILE).get("labels")
    if not isinstance(labels, Mapping):
        raise InputError(f"{path} has no labels, as numbers and names; {WHAT} was expected.")
    for key, value in labels.items():
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if _label(key) is not None and isinstance(value, str):
            yield key, value
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value, key


def _table_entries(path: Path) -> Entries:
    """Number and name of the rows of a CSV or TSV table."""
    text = read_text(path, WHAT, limit=LARGEST_FILE)
    swapped = str.maketrans({",": "\t", "\t": ","}) if ending(path) == ".tsv" else {}
    text = text.translate(swapped)  # a name may contain a comma
    columns, rows = parse_csv(text, path, WHAT)
    lower = {name.lower(): name for name in columns}
    number, name = (
        next((lower[word] for word in words if word in lower), None) for words in _COLUMNS.values()
    )
    if number is None or name is None:
        raise InputError(f"{path} has no columns index and name; {WHAT} was expected.")
    return ((row.cells[number], row.cells[name].translate(swapped)) for row in rows)


def _text_entries(path: Path) -> Entries:
    """Number and name of the lines of a colour table or a label description."""
    strange: list[int] = []
    text = read_text(path, WHAT, limit=LARGEST_FILE)
    lines = {count: line.strip() for count, line in enumerate(text.splitlines(), start=1)}
    lines = {n: line for n, line in lines.items() if line and not line.startswith(("#", "//", "%"))}
    ends = [_trailing_numbers(line.split()[1:]) for line in lines.values()]
    colour = min((count for count in ends if count >= 3), default=4)  # 3, or 4 with opacity
    for count, line in lines.items():
        entry = _text_entry(line, min(colour, 4))
        if entry is None:
            strange.append(count)
        else:
            yield entry
    if strange:
        where = f"line {strange[0]}" + (f" and {len(strange) - 1} more" if len(strange) > 1 else "")
        warnings.warn(
            f"{path}: {where} cannot be understood as a number, a name and a colour, and was"
            " skipped.",
            UserWarning,
            stacklevel=4,
        )


def _trailing_numbers(words: Sequence[str]) -> int:
    """How many of some words are numbers at their end, leaving one for a name."""
    count = 0
    while count < len(words) - 1 and _NUMBER.fullmatch(words[-1 - count]):
        count += 1
    return count


def _text_entry(line: str, colour: int) -> tuple[str, str] | None:
    """Number and name of one line of ITK-SNAP, FreeSurfer or 3D Slicer, whose tables have `colour`
    numbers at the end of a line; None if it is neither.
    """
    snap = _SNAP.fullmatch(line)
    if snap is not None:
        return snap[1], snap[2]
    number, *words = line.split()
    if _label(number) is None or not words:
        return None
    numbers = _trailing_numbers(words)  # after the name: the colour, with or without opacity
    if numbers == len(words) - 1 and _NUMBER.fullmatch(words[0]):
        return None
    numbers = min(numbers, colour)  # a name of several words may end with a number
    return number, " ".join(words[: len(words) - numbers] if numbers >= 3 else words)


def _label(value: object) -> int | None:
    """A whole number from text or JSON, or None."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,16}", text):
        return None
    return int(text) if abs(int(text)) < LARGEST_LABEL else None


def _name(value: object) -> str:
    """A name on one line, printable and not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in printable(str(value))).split())
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


_RIGHT = {  # right minus left, and the structures of the left side: facts of FreeSurfer's table
    39: {
        2: "Cerebral-White-Matter",
        3: "Cerebral-Cortex",
        4: "Lateral-Ventricle",
        5: "Inf-Lat-Vent",
        7: "Cerebellum-White-Matter",
        8: "Cerebellum-Cortex",
        10: "Thalamus",
        11: "Caudate",
        12: "Putamen",
        13: "Pallidum",
    },
    36: {17: "Hippocampus", 18: "Amygdala"},
    32: {
        25: "Lesion",
        26: "Accumbens-area",
        28: "VentralDC",
        30: "vessel",
        31: "choroid-plexus",
    },
    1: {78: "WM-hypointensities", 81: "non-WM-hypointensities"},
}
_MIDDLE = {
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    24: "CSF",
    72: "5th-Ventricle",
    77: "WM-hypointensities",
    80: "non-WM-hypointensities",
    85: "Optic-Chiasm",
    165: "Skull",
    172: "Vermis",
    174: "Pons",
    251: "CC_Posterior",
    252: "CC_Mid_Posterior",
    253: "CC_Central",
    254: "CC_Mid_Anterior",
    255: "CC_Anterior",
    257: "CSF-ExtraCerebral",
    258: "Head-ExtraCerebral",
    5001: "Left-UnsegmentedWhiteMatter",
    5002: "Right-UnsegmentedWhiteMatter",
}
_GYRI = (  # of Desikan-Killiany, from 0
    "unknown bankssts caudalanteriorcingulate caudalmiddlefrontal corpuscallosum cuneus entorhinal"
    " fusiform inferiorparietal inferiortemporal isthmuscingulate lateraloccipital"
    " lateralorbitofrontal lingual medialorbitofrontal middletemporal parahippocampal paracentral"
    " parsopercularis parsorbitalis parstriangularis pericalcarine postcentral posteriorcingulate"
    " precentral precuneus rostralanteriorcingulate rostralmiddlefrontal superiorfrontal"
    " superiorparietal superiortemporal supramarginal frontalpole temporalpole transversetemporal"
    " insula"
).split()
# of the head around the brain in the label maps of SynthSeg; no public table names them
_NAMELESS = {136, 137, 163, 164, 259, *range(500, 534)}
_PAIRED = ((10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54))
_LEAST_PAIRS = 3  # Ours: of `_PAIRED`, in both hemispheres


def _freesurfer_table() -> dict[int, str]:
    names = dict(_MIDDLE)
    for offset, structures in _RIGHT.items():
        for code, structure in structures.items():
            names |= {code: f"Left-{structure}", code + offset: f"Right-{structure}"}
    for first, prefix in ((1000, "ctx-lh"), (2000, "ctx-rh"), (3000, "wm-lh"), (4000, "wm-rh")):
        names |= {first + n: f"{prefix}-{gyrus}" for n, gyrus in enumerate(_GYRI)}
    return dict(sorted(names.items()))


FREESURFER = LabelNames(_freesurfer_table(), GUESSED)
"""Codes of aseg, aparc+aseg and wmparc (Desikan-Killiany), with the names of FreeSurfer's table."""


def freesurfer_names(labels: Collection[int]) -> LabelNames:
    """Name labels by FreeSurfer's codes, or not at all.

    Ours: used only if every label is such a code and at least three of thalamus, caudate, putamen,
    pallidum, hippocampus and amygdala have their codes on both sides; a map with the labels 1 and 2
    is something else.

    Parameters
    ----------
    labels : collection of int

    Returns
    -------
    LabelNames
        Empty if the labels are not FreeSurfer's.
    """
    found = set(labels) - {0}
    pairs = sum(found.issuperset(pair) for pair in _PAIRED)
    if pairs < _LEAST_PAIRS or found - set(FREESURFER.names) - _NAMELESS:
        return LabelNames()
    return FREESURFER.within(sorted(found))
