"""Captions of the figures of loads: which share, of how much, and what it does not say."""

from __future__ import annotations

from collections.abc import Iterable

from napari_shmoareg.analysis.expert_load import ExpertLoad
from napari_shmoareg.analysis.place_load import BOUNDARY, PlaceLoad

CELLS = {"encoder": "token", "decoder": "voxel"}
CAUTION = (
    "A load says how often an expert was chosen: not how much it contributed, nor that it chose well. Only an "
    "intervention (silence or force it, and run again) shows what depends on it."
)
FIVE = (
    "The places are fractions of the box around the content of {fixed}, in its axial middle plane (the centre; a "
    "quarter and three quarters across; upper is the front, left is the patient's left){why}"
)
GIVEN = "The places are positions in the world of the fixed images (mm, RAS), as asked; each lies in every one of them"


def load_caption(load: ExpertLoad, pairs: int, passes: Iterable[int | None] = (1,), routing: str = "") -> str:
    """What the bars and the error bars of Fig. 5 (`load_figure`) are.

    Parameters
    ----------
    load : ExpertLoad
        Of all pairs added up.
    pairs : int
    passes : iterable of int or None
        How often the network ran on each pair; the loads are of the last time.  None: that is not known.
    routing : str
        Whether the routing of these weights matters, as their card says (`routing_sentence`).
    """
    cells = {part: sum(load.select(part=part).cells.values()) for part in ("encoder", "decoder")}
    counted = [
        f"{cells[part]:,} decisions of the {part}'s gates (each gate decides once per {what})"
        for part, what in CELLS.items()
        if cells[part]
    ]
    bars = "Error bars: standard deviation over the pairs of each pair's own share."
    return (
        "Share of selections: of all choices that a gate made, the part that fell on an expert; it sums to 100 % over "
        f"the experts of a gate ({_choices(load)}). Counted: {_pairs(pairs)}, {' and '.join(counted)}, those "
        "of the background too. "
        f"{bars if pairs > 1 else 'No error bars: one pair has no spread.'}{_last(passes)}{_also(routing)}"
    )


def place_caption(
    load: PlaceLoad,
    pairs: int,
    *,
    given: bool,
    voxel: str,
    told: str = "",
    passes: Iterable[int | None] = (1,),
    routing: str = "",
) -> str:
    """What the bars of Fig. 6 (`place_figure`) are.

    Parameters
    ----------
    load : PlaceLoad
        Of all pairs added up.
    pairs : int
    given : bool
        Whether the places are positions that a person named; otherwise they are the five of `FRACTIONS`.
    voxel : str
        The place of the decoder's panels.
    told : str
        More about it: which labels meet there, how many pairs have such a boundary.
    passes, routing
        As for `load_caption`.
    """
    if voxel == BOUNDARY:
        where = f"the voxel on a boundary between two labels of the fixed image that is nearest the centre{told}"
    else:
        lacking = f", as there is no boundary of labels in {'any' if pairs > 1 else 'the'} fixed image"
        where = f"the place '{voxel}'{'' if given else lacking}"
    many = "each pair's own fixed image", ", because the fixed images of a list need not share a space"
    fixed, why = many if pairs > 1 else ("the fixed image", "")
    places = GIVEN if given else FIVE.format(fixed=fixed, why=why)
    return (
        f"Share of tokens: how often the one token (voxel) that holds a place chose an expert, over {_pairs(pairs)} "
        f"and the blocks of a layer; it sums to k times 100 % over the experts ({_choices(load[voxel])}). "
        f"{places}. Tokens of the moving image are those at the same place after the affine and any earlier passes. "
        f"(b): {where}. No error bars: at one place a pair says yes or no to an expert, once per block."
        f"{_heights(load[voxel]) if pairs == 1 else ''}{_last(passes)}{_also(routing)}"
    )


def _also(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


def _heights(load: ExpertLoad) -> str:
    """Which heights the bars of one pair can have: " With one pair a bar can only be 0, 50 or 100 % in (a), ..."."""
    told = dict[str, str]()
    for part, panel in (("encoder", "(a)"), ("decoder", "(b)")):
        blocks = set(load.over_blocks().select(part=part).cells.values())
        heights = [f"{100 * share:.3g}" for share in sorted({n / count for count in blocks for n in range(count + 1)})]
        if heights:
            told[panel] = f"{', '.join(heights[:-1])} or {heights[-1]} %"
    if len(set(told.values())) == 1:
        return f" With one pair a bar can only be {next(iter(told.values()))}."
    return f" With one pair a bar can only be {', '.join(f'{height} in {panel}' for panel, height in told.items())}."


def _choices(load: ExpertLoad) -> str:
    """How many experts a cell chooses: "a token chooses k = 4 of 12, a voxel k = 1 of 3 per direction"."""
    words = {"encoder": ("a token chooses", ""), "decoder": ("a voxel chooses", " per direction")}
    told = []
    for part, (chooses, after) in words.items():
        found = load.select(part=part)
        kinds = {(int(counts.sum()) // found.cells[place], len(counts)) for place, counts in found.counts.items()}
        told += [f"{chooses} k = {k} of {n}{after}" for k, n in sorted(kinds)]
    return ", ".join(told)


def _pairs(pairs: int) -> str:
    return f"{pairs} pairs" if pairs > 1 else "one pair"


def _last(passes: Iterable[int | None]) -> str:
    found = set(passes)
    known = sorted(n for n in found if n is not None)
    if len(known) < len(found):
        return " Of the network's last pass over a pair; how many there were was not kept for every pair."
    if len(known) > 1:
        return f" Of the last of the network's passes over a pair ({known[0]} to {known[-1]}, by the size of its grid)."
    return f" Of the last of the network's {known[0]} passes over a pair." if known and known[0] > 1 else ""
