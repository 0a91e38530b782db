"""What one registration and the card of its weights say about the experts, in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.maps import (
    content_cells,
    entropy_of,
    expert_maps,
    gate_values,
    token_loads,
)
from napari_shmoareg.experts.routing_scores import routing_phrases
from napari_shmoareg.registration.register import Registration

Topic = Literal["Maps", "Layers", "Location", "Regions", "What if"]
EVEN = 0.95  # Ours: evenness above which experts count as chosen alike
CLOSE = 0.05  # Ours: median margin below which choices count as close


class Conclusion(NamedTuple):
    """A sentence, and the topic under which it can be checked: a tab of the Experts panel."""

    text: str
    topic: Topic


class Evenness(NamedTuple):
    """How the experts of some gates were chosen, over the cells with content.

    Attributes
    ----------
    evenness : float
        Entropy of the shares of selections over its maximum, mean over the gates: 1 if all experts
        are chosen alike, 0 if one is always chosen.
    margin : float or None
        Median margin of the choices; None without gate values.
    """

    evenness: float
    margin: float | None

    @property
    def text(self) -> str:
        """``almost alike (evenness 0.98 of 1), by close choices (margin 0.01)``."""
        how = "almost alike" if self.evenness >= EVEN else "unevenly"
        words = f"{how} (evenness {self.evenness:.2f} of 1)"
        if self.margin is None:
            return words
        by = "close" if self.margin < CLOSE else "clear"
        return f"{words}, by {by} choices (margin {self.margin:.1g})"


def evenness_of(registration: Registration, part: str) -> Evenness | None:
    """How evenly the experts of "encoder" or "decoder" were chosen; None without such gates."""
    shares = []
    if part == "decoder":
        for expert_map in expert_maps(registration):
            inside = content_cells(registration, expert_map.stride)
            shares.append(expert_map.shares(inside))
    else:
        for load in token_loads(registration):
            inside = content_cells(registration, load.stride)
            chosen = (load.values[inside] > 0).sum(axis=0, dtype=np.float64)
            shares.append(chosen / max(chosen.sum(), 1))
    if not shares:
        return None
    margins = [
        gate.margin().values[content_cells(registration, gate.stride)]
        for gate in gate_values(registration)
        if gate.gate.part == part
    ]
    margin = float(np.median(np.concatenate(margins))) if margins else None
    return Evenness(float(np.mean([entropy_of(share) for share in shares])), margin)


def conclusions(
    registration: Registration,
    card: Mapping[str, Any] | None,
    kernels: Sequence[str],
    regions: tuple[int, int] | None = None,
) -> list[Conclusion]:
    """Say which gates decide, which hardly do, and whether regions differ, a sentence each.

    Parameters
    ----------
    registration : Registration
    card : mapping or None
        Model card of its weights, with the controls measured on pairs; None if they are not at
        hand.
    kernels : sequence of str
        Names of the decoder's experts, by id.
    regions : (int, int), optional
        How many of how many compared regions differ by more than chance.

    Returns
    -------
    list of Conclusion
        Empty for a registration without experts.
    """
    decoder, encoder = (evenness_of(registration, part) for part in ("decoder", "encoder"))
    if decoder is None and encoder is None:
        return []
    found = [Conclusion(_importance(card), "What if")]
    if decoder is not None:
        text = f"{_favourite(registration, kernels)}; kernels are chosen {decoder.text}"
        found.append(Conclusion(text, "Maps"))
    if encoder is not None:
        found.append(Conclusion(f"Heads are chosen {encoder.text}", "Layers"))
    if regions is None:
        text = "Whether regions differ by more than chance was not compared yet"
    else:
        text = f"{regions[0]} of {regions[1]} regions differ by more than chance"
    return [*found, Conclusion(text, "Regions")]


def _importance(card: Mapping[str, Any] | None) -> str:
    """What depends on the choices, by the card of the weights."""
    try:
        phrases = routing_phrases(card or {})
    except InputError as error:
        return str(error).rstrip(".")
    if not phrases:
        unknown = "is unknown: the weights are not at hand"
        return f"Whether the choices matter {unknown if card is None else 'was not measured'}"
    names = {"decoder": "Choice of kernels", "encoder": "choice of heads", "attention": "attention"}
    return "; ".join(f"{word}: {phrases[name]}" for name, word in names.items() if name in phrases)


def _favourite(registration: Registration, kernels: Sequence[str]) -> str:
    """The kernel that is chosen most at the finest resolution, over cells with content."""
    maps = expert_maps(registration)
    finest = [one for one in maps if one.stride == min(each.stride for each in maps)]
    inside = content_cells(registration, finest[0].stride)
    shares = np.array([one.shares(inside) for one in finest])
    most = int(shares.mean(axis=0).argmax())
    along = ", ".join(
        f"{one.gate.direction} {100 * share:.0f} %"
        for one, share in zip(finest, shares[:, most], strict=True)
    )
    return f"{kernels[most]} is chosen most, on average ({along} of the cells without air)"
