"""Scores of routing and attention: controls measured on pairs, with intervals over subjects.

Ours, beyond the paper.  *Routing matters* = (learned - shuffled) / (learned - before): the share of
the network's gain over the alignment that is lost when the expert choices of the cells are
permuted.  *Attention matters* = (learned - attention off) / (learned - before)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.controls import Control, Name, controls_of
from napari_shmoareg.experts.experiment import run_with_changes
from napari_shmoareg.geometry import VolumePair, warp_volume
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics import dice, mean
from napari_shmoareg.metrics.subject_bootstrap import subject_draws
from napari_shmoareg.model.routing import Part
from napari_shmoareg.registration.replay import Replay
from napari_shmoareg.registration.similarity import compare_images

Measure = Literal["dice", "similarity"]
BEFORE, LEARNED = "before", "learned"
MEASURES: dict[str, str] = {"dice": "Dice", "similarity": "local correlation"}
SCORES: dict[str, tuple[Part, Name]] = {
    "encoder": ("encoder", "shuffled"),
    "decoder": ("decoder", "shuffled"),
    "attention": ("encoder", "attention_off"),
}
# share of draws with a gain of the network that an interval of shares of the gain requires
MIN_GAIN_FRACTION = 0.99


@dataclass(frozen=True)
class ControlledPair:
    """Results of the controls on one pair.

    Attributes
    ----------
    moving, fixed : str
        Names of the images or of their subjects; pairs that share one are not independent.
    measure : {"dice", "similarity"}
        Dice: mean over the labels that both images have on the network grid, resampled there by
        nearest neighbour.  Similarity, for pairs without labels: `Similarity.local`, the mean
        squared local correlation.
    values : mapping of str to float
        By "before" (the alignment alone), "learned", and the `key` of each control; higher is
        better.
    """

    moving: str
    fixed: str
    measure: Measure
    values: Mapping[str, float]

    @property
    def gain(self) -> float:
        """Of the network over the alignment."""
        return self.values[LEARNED] - self.values[BEFORE]


@dataclass(frozen=True)
class Share:
    """An estimate and its 95 % interval; None with too few subjects for an interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0; False without an interval."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def text(self) -> str:
        """Format in percent: "45 % [38, 52]", or the number alone without an interval."""
        value, *ends = (
            format(round(100 * v) + 0, "d")
            for v in (self.value, self.low, self.high)
            if v is not None
        )
        return f"{value} %" + (f" [{', '.join(ends)}]" if ends else "")


@dataclass(frozen=True)
class ControlRow:
    """Result of a control over all pairs.

    Attributes
    ----------
    key : str
        "before", "learned" or the key of a control.
    control : Control or None
    pairs, images : int
        Number of pairs and of distinct images.
    measure : {"dice", "similarity"}
    value : float
        Mean over the pairs.
    change : Share
        Mean of control minus learned.
    kept : Share or None
        (control - before) / (learned - before), sums over the pairs: 1 if nothing is lost, 0 if
        the whole gain is lost, below 0 if the result is worse than the alignment.  None if the
        network gains nothing.
    """

    key: str
    control: Control | None
    pairs: int
    images: int
    measure: Measure
    value: float
    change: Share
    kept: Share | None

    @property
    def lost(self) -> Share | None:
        """The share of the gain that is lost: 1 - kept."""
        kept = self.kept
        if kept is None:
            return None
        low, high = kept.low, kept.high
        return Share(
            1 - kept.value, None if high is None else 1 - high, None if low is None else 1 - low
        )

    def to_dict(self) -> dict[str, Any]:
        """Table row; missing values are empty."""
        control, kept = self.control, self.kept
        return {
            "control": self.key if control is None else control.name,
            "part": "" if control is None else control.part,
            "expert": "" if control is None or control.expert is None else control.expert,
            "passes": "" if control is None else control.passes,
            "pairs": self.pairs,
            "images": self.images,
            self.measure: self.value,
            "change": self.change.value,
            "low": _cell(self.change.low),
            "high": _cell(self.change.high),
            "share_of_gain_kept": "" if kept is None else kept.value,
            "share_low": "" if kept is None else _cell(kept.low),
            "share_high": "" if kept is None else _cell(kept.high),
            "title": TITLES.get(self.key, self.key) if control is None else control.title,
        }


TITLES = {BEFORE: "before (the alignment alone)", LEARNED: "as learned"}


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


class PairMeasure:
    """Scores a displacement on a replay's network grid by one measure.

    Parameters
    ----------
    replay : Replay
    measure : {"dice", "similarity"}, optional
        By default Dice if both images have labels.

    Raises
    ------
    InputError
        If Dice is requested and the images share no label on the network grid.
    """

    def __init__(self, replay: Replay, measure: Measure | None = None) -> None:
        self._replay, self._pair = replay, replay.pair
        self.measure: Measure = measure or measure_for(replay.pair)
        if self.measure == "dice" and not self._labels:
            raise InputError(
                f"Moving '{self._pair.moving.name}' and fixed '{self._pair.fixed.name}' have no"
                " label in common on the network grid, so Dice cannot be computed. Give labels"
                " of both, or of neither."
            )

    @cached_property
    def _truth(self) -> NDArray:
        assert self._pair.fixed_labels is not None
        return resample(self._pair.fixed_labels, self._replay.grid).values

    @cached_property
    def _labels(self) -> list[int]:
        """Labels that both images have on the network grid after the alignment."""
        if self._pair.fixed_labels is None or self._pair.moving_labels is None:
            return []
        return sorted(
            (
                set(np.unique(self._warped_labels(None)).tolist())
                & set(np.unique(self._truth).tolist())
            )
            - {0}
        )

    def _transform(self, displacement: Tensor | None) -> Any:
        identity = torch.zeros((1, 3, *self._replay.grid.shape))
        return self._replay.conformed.transform(identity if displacement is None else displacement)

    def _warped_labels(self, displacement: Tensor | None) -> NDArray:
        assert self._pair.moving_labels is not None
        return warp_volume(
            self._pair.moving_labels, self._replay.grid, self._transform(displacement)
        ).values

    def of(self, displacement: Tensor | None) -> float:
        """Score a displacement (1, 3, D, H, W) in voxels; None is the alignment alone.

        Raises
        ------
        InputError
            If the images do not overlap.
        """
        if self.measure == "dice":
            found = dice(self._warped_labels(displacement), self._truth, self._labels)
            return mean(found)
        similarity = compare_images(self._pair, self._transform(displacement))
        if similarity is None:
            raise InputError(
                "The images do not overlap, so they cannot be compared. Check their headers."
            )
        return similarity.local


def measure_for(pair: VolumePair) -> Measure:
    """Dice if both images have labels, otherwise the local correlation."""
    return (
        "dice" if pair.moving_labels is not None and pair.fixed_labels is not None else "similarity"
    )


def measure_controls(
    replay: Replay,
    controls: Sequence[Control] | None = None,
    *,
    measure: Measure | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Iterator[tuple[str, float]]:
    """Measure a pair before the network, after it, and under each control.

    One value per `next`, each takes seconds.  The generator can be stopped at any value.

    Parameters
    ----------
    replay : Replay
    controls : sequence of Control, optional
        All of `controls_of` by default.
    measure : {"dice", "similarity"}, optional
        See `PairMeasure`.
    progress : callable, optional
        Called with the title of the current step and the share of the work that is done.

    Yields
    ------
    key : str
        As in `ControlledPair.values`.
    value : float

    Raises
    ------
    InputError, TooLargeError
        As `PairMeasure` and `run_with_changes`.
    """
    controls = controls_of(replay.network) if controls is None else controls
    report = progress or (lambda _title, _done: None)
    measured, total = PairMeasure(replay, measure), len(controls) + 1
    yield BEFORE, measured.of(None)
    report(TITLES[LEARNED], 0.0)
    yield LEARNED, measured.of(run_with_changes(replay)[0])
    for number, control in enumerate(controls, start=1):
        report(f"{control.part}: {control.title}", number / total)
        yield control.key, measured.of(run_with_changes(replay, [control])[0])
    report("all controls measured", 1.0)


def control_rows(
    pairs: Sequence[ControlledPair], controls: Sequence[Control], *, seed: int = 1
) -> list[ControlRow]:
    """Tabulate before, learned, then each control, with 95 % intervals over subjects.

    Intervals are percentiles of a bootstrap over subjects (`subject_draws`), with the same draws
    for every row, so that the comparison is paired.  A share of the gain has an interval only if
    the network gains something in 99 % of the draws.

    Parameters
    ----------
    pairs : sequence of ControlledPair
        At least one, all with the same measure, each with a value of every control.
    controls : sequence of Control
    seed : int

    Raises
    ------
    InputError
        If the pairs have different measures.
    """
    measures = {pair.measure for pair in pairs}
    if len(measures) != 1:
        raise InputError(
            "All pairs of a comparison need the same measure; got"
            f" {', '.join(sorted(measures)) or 'no pair'}."
        )
    weights = subject_draws([(pair.moving, pair.fixed) for pair in pairs], seed=seed)
    images = len({name for pair in pairs for name in (pair.moving, pair.fixed)})
    before, learned = (np.array([pair.values[key] for pair in pairs]) for key in (BEFORE, LEARNED))
    rows = []
    for key, control in [
        (BEFORE, None),
        (LEARNED, None),
        *((control.key, control) for control in controls),
    ]:
        values = np.array([pair.values[key] for pair in pairs])
        change = _share(values - learned, np.ones(len(pairs)), weights)
        kept = _share(values - before, learned - before, weights)
        assert change is not None
        rows.append(
            ControlRow(
                key,
                control,
                len(pairs),
                images,
                pairs[0].measure,
                float(values.mean()),
                change,
                kept,
            )
        )
    return rows


def _share(over: NDArray, under: NDArray, weights: NDArray | None) -> Share | None:
    """Ratio of the sums of `over` and `under` over pairs; None unless the latter is above 0."""
    if under.sum() <= 0:
        return None
    value = float(over.sum() / under.sum())
    if weights is None:
        return Share(value)
    total = weights @ under
    if (total > 0).mean() < MIN_GAIN_FRACTION:
        return Share(value)
    kept = total > 0
    low, high = np.percentile((weights @ over)[kept] / total[kept], [2.5, 97.5])
    return Share(value, float(low), float(high))


def scores_of(rows: Sequence[ControlRow]) -> dict[str, Any]:
    """Scores for "routing_matters" of a model card, and what they were measured on; plain JSON.

    ``encoder``, ``decoder`` (routing matters) and ``attention`` (attention matters), if measured:
    the share of the gain that is lost as {"score", "low", "high"}; low and high are None without
    an interval."""
    values = {row.key: row.value for row in rows}
    first = rows[0]
    found: dict[str, Any] = {"measure": first.measure, "pairs": first.pairs, "images": first.images}
    found |= {"before": values[BEFORE], "learned": values[LEARNED]}
    found["passes"] = next((row.control.passes for row in rows if row.control is not None), "all")
    for name, (part, control) in SCORES.items():
        row = next(
            (r for r in rows if r.control and (r.control.part, r.control.name) == (part, control)),
            None,
        )
        if row is not None and row.lost is not None:
            found[name] = {"score": row.lost.value, "low": row.lost.low, "high": row.lost.high}
    return found


def routing_sentence(card: Mapping[str, Any]) -> str:
    """Summarise the routing scores of a model card in one sentence; empty if not measured.

    Parameters
    ----------
    card : mapping
        From `read_card`; its "routing_matters" is from `scores_of`.

    Raises
    ------
    InputError
        If the scores of the card cannot be read.
    """
    scores, phrases = card.get("routing_matters"), routing_phrases(card)
    if scores is None:
        return ""
    pairs, measure = int(scores["pairs"]), MEASURES[scores["measure"]]
    if not phrases:
        return (
            f"Routing of these weights: they gain nothing over the alignment ({_pairs(pairs)},"
            f" {measure})."
        )
    listed = "; ".join(f"{_WORDS[name]} {phrase}" for name, phrase in phrases.items())
    return f"Routing of these weights ({_pairs(pairs)}, {measure}): {listed}."


def routing_phrases(card: Mapping[str, Any]) -> dict[str, str]:
    """The score of "encoder", "decoder" and "attention" in words, as far as they were measured.

    Raises
    ------
    InputError
        If the scores of the card cannot be read.
    """
    scores = card.get("routing_matters")
    if scores is None:
        return {}
    try:
        int(scores["pairs"]), MEASURES[scores["measure"]]
        return {name: _phrase(scores[name]) for name in _WORDS if name in scores}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The routing scores in the card of these weights cannot be read ({error!r:.80})."
        ) from error


_WORDS = {
    "encoder": "of the encoder:",
    "decoder": "of the decoder:",
    "attention": "attention as a whole:",
}


def _phrase(score: Mapping[str, Any]) -> str:
    """One score in words."""
    low, high = (None if score[end] is None else float(score[end]) for end in ("low", "high"))
    share = Share(float(score["score"]), low, None if low is None else high)
    if low is None:
        return f"{share.text()} of the gain depends on it (no interval: too few subjects)"
    if not share.excludes_zero:
        return f"no effect found ({share.text()})"
    return (
        f"{share.text()} of the gain depends on it"
        if share.value > 0
        else f"better without it ({share.text()})"
    )


def _pairs(pairs: int) -> str:
    return f"{pairs} pairs" if pairs != 1 else "one pair"
