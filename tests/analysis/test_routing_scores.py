"""Scores of routing and attention: the table is what is counted by hand, its intervals are over
subjects.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.controls import Control, controls_of
from napari_shmoareg.experts.intervention import changed_gates
from napari_shmoareg.experts.routing_scores import (
    ControlledPair,
    PairMeasure,
    Share,
    control_rows,
    measure_controls,
    routing_sentence,
    scores_of,
)
from napari_shmoareg.figures.routing import controls_caption, controls_figure, title_of
from napari_shmoareg.metrics.subject_bootstrap import subject_draws
from napari_shmoareg.registration.register import register
from napari_shmoareg.registration.replay import Replay
from napari_shmoareg.registration.similarity import compare_images

SHUFFLED, OFF = Control("shuffled", "encoder"), Control("attention_off", "encoder")
OWN = Control("shuffled", "decoder")
CONTROLS = (SHUFFLED, OFF, OWN)


def made(moving, fixed, before, learned, *values, measure="dice"):
    found = {"before": before, "learned": learned} | {
        c.key: v for c, v in zip(CONTROLS, values, strict=True)
    }
    return ControlledPair(moving, fixed, measure, found)


RING = [  # six pairs of six people
    made("a", "b", 0.50, 0.60, 0.60, 0.59, 0.55),
    made("b", "c", 0.55, 0.66, 0.67, 0.66, 0.60),
    made("c", "d", 0.52, 0.64, 0.63, 0.65, 0.59),
    made("d", "e", 0.58, 0.65, 0.66, 0.64, 0.61),
    made("e", "f", 0.51, 0.61, 0.61, 0.60, 0.57),
    made("f", "a", 0.54, 0.62, 0.62, 0.63, 0.56),
]


def test_the_table_is_what_is_counted_by_hand():
    rows = {row.key: row for row in control_rows(RING, CONTROLS)}
    assert list(rows) == [
        "before",
        "learned",
        "encoder shuffled",
        "encoder attention_off",
        "decoder shuffled",
    ]
    gain = sum(p.gain for p in RING)
    assert gain == pytest.approx(0.58)
    for key, row in rows.items():
        values = [p.values[key] for p in RING]
        learned, before = ([p.values[k] for p in RING] for k in ("learned", "before"))
        assert row.value == pytest.approx(np.mean(values)) and (row.pairs, row.images) == (6, 6)
        assert row.change.value == pytest.approx(np.mean(np.subtract(values, learned)))
        assert row.kept.value == pytest.approx(sum(np.subtract(values, before)) / gain)
        assert row.lost.value == pytest.approx(sum(np.subtract(learned, values)) / gain)
        assert row.lost.low == pytest.approx(1 - row.kept.high)
    lost = rows["decoder shuffled"].lost
    assert (
        lost.value == pytest.approx(0.30 / 0.58)
        and lost.excludes_zero
        and lost.low < lost.value < lost.high
    )
    assert not rows["encoder shuffled"].lost.excludes_zero
    table = rows["decoder shuffled"].to_dict()
    assert (table["control"], table["part"], table["passes"], table["pairs"]) == (
        "shuffled",
        "decoder",
        "all",
        6,
    )
    assert table["dice"] == rows["decoder shuffled"].value and table[
        "share_of_gain_kept"
    ] == pytest.approx(0.28 / 0.58)
    assert table["change"] == pytest.approx(-0.05) and table["low"] < -0.05 < table["high"] < 0


def test_the_interval_is_that_of_a_bootstrap_over_subjects_drawn_one_by_one():
    """Written out: people are drawn, a pair counts as often as both of its people were, and ratios
    are of sums.
    """
    lot, people, shares = np.random.default_rng(5), "abcdef", []
    pairs = [
        made(m, f, 0.5, *(0.6 + 0.02 * lot.normal(size=3)), 0.55 + 0.02 * lot.normal())
        for m in people
        for f in people
        if m < f
    ]
    while len(shares) < 4000:
        drawn = [people[n] for n in lot.integers(6, size=6)]
        counted = [(p, drawn.count(p.moving) * drawn.count(p.fixed)) for p in pairs]
        gain = sum(n * p.gain for p, n in counted)
        if gain:
            lost = sum(n * (p.values["learned"] - p.values["decoder shuffled"]) for p, n in counted)
            shares.append(lost / gain)
    row = next(r for r in control_rows(pairs, CONTROLS) if r.key == "decoder shuffled")
    np.testing.assert_allclose(
        (row.lost.low, row.lost.high), np.percentile(shares, [2.5, 97.5]), atol=0.02
    )


def test_few_subjects_have_no_interval_and_pairs_of_other_people_are_drawn_themselves():
    assert (
        subject_draws([("a", "b")]) is None
        and subject_draws([("a", "b"), ("b", "c"), ("c", "a")]) is None
    )
    apart = [(f"m{n}", f"f{n}") for n in range(5)]
    draws = subject_draws(apart, draws=500)
    assert draws.shape == (500, 5) and (draws.sum(axis=1) == 5).all()
    assert subject_draws(apart[:4]) is None
    ring = subject_draws([(p.moving, p.fixed) for p in RING], draws=500)
    assert len(ring) <= 500 and (ring.sum(axis=1) > 0).all()
    assert np.array_equal(ring, subject_draws([(p.moving, p.fixed) for p in RING], draws=500))
    row = control_rows(RING[:1], CONTROLS)[-1]
    assert row.change.low is None and row.lost.low is None and not row.lost.excludes_zero
    assert row.to_dict()["low"] == "" and row.lost.value == pytest.approx(0.5)


def test_a_network_that_gains_nothing_has_no_share_of_it():
    worse = [replace(p, values=p.values | {"learned": p.values["before"] - 0.01}) for p in RING]
    rows = control_rows(worse, CONTROLS)
    assert all(row.kept is None and row.lost is None for row in rows)
    scores = scores_of(rows)
    assert "encoder" not in scores and scores["learned"] < scores["before"]
    assert "gain nothing over the alignment (6 pairs, Dice)" in routing_sentence(
        {"routing_matters": scores}
    )
    controls_figure(rows, controls_caption(rows))
    now_and_then = [
        replace(p, values=p.values | {"learned": p.values["before"] + (-0.1, 0.15)[n % 2]})
        for n, p in enumerate(RING)
    ]
    share = control_rows(now_and_then, CONTROLS)[-1].kept
    assert share is not None and share.low is None, "an uncertain gain divides nothing"


def test_pairs_measured_by_different_measures_are_not_added():
    with pytest.raises(InputError, match="need the same measure; got dice, similarity"):
        control_rows([RING[0], replace(RING[1], measure="similarity")], CONTROLS)


def test_the_card_says_what_was_found_and_the_sentence_what_the_card_says():
    scores = scores_of(control_rows(RING, CONTROLS))
    assert set(scores) >= set("encoder decoder attention measure pairs images passes".split())
    assert scores["decoder"]["score"] == pytest.approx(0.30 / 0.58) and scores["pairs"] == 6
    said = routing_sentence({"routing_matters": scores})
    assert said.startswith(
        "Routing of these weights (6 pairs, Dice): of the encoder: no effect found (-2 % ["
    )
    assert (
        "of the decoder: 52 % [" in said
        and "of the gain depends on it; attention as a whole: no effect found (" in said
    )
    assert routing_sentence({"steps": 5}) == ""
    alone = scores_of(control_rows(RING[:1], CONTROLS))
    assert (
        "of the decoder: 50 % of the gain depends on it (no interval: too few subjects)"
        in routing_sentence({"routing_matters": alone})
    )
    harmful = {"routing_matters": scores | {"encoder": {"score": -0.1, "low": -0.2, "high": -0.05}}}
    assert "of the encoder: better without it (-10 % [-20, -5])" in routing_sentence(harmful)
    endless = scores | {"encoder": {"score": float("inf"), "low": None, "high": None}}
    for broken in (
        {"pairs": 6},
        {"pairs": 6, "measure": "dice", "encoder": {"score": "much"}},
        "good",
        [1],
        endless,
    ):
        with pytest.raises(InputError, match="cannot be read"):
            routing_sentence({"routing_matters": broken})


def test_shares_are_written_as_whole_percents():
    assert Share(0.451, 0.38, 0.524).text() == "45 % [38, 52]" and Share(-0.001).text() == "0 %"


@pytest.fixture
def replay(pair, lively_network):
    network = lively_network(0.05)
    object.__setattr__(network.config, "passes", (0.7, 1.0))
    return Replay.of(pair, network, settings={"size": 26})


def test_what_is_measured_on_a_pair_is_what_registrations_under_the_hooks_reach(pair, replay):
    """Dice counted here by other means: labels looked up point by point at the voxels of the
    network grid.
    """
    controls = [SHUFFLED, Control("moved", "decoder", passes="last")]
    told = []
    values = dict(
        measure_controls(replay, controls, progress=lambda title, done: told.append((title, done)))
    )
    assert list(values) == ["before", "learned", "encoder shuffled", "decoder moved"]
    assert [title for title, _ in told] == [
        "as learned",
        "encoder: shuffled",
        "decoder: moved by half the grid",
        "all controls measured",
    ]
    assert [done for _, done in told] == sorted(done for _, done in told) and told[-1][1] == 1
    grid = replay.grid
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))

    def look_up(volume, where):
        index = np.rint(volume.grid.to_index(where)).astype(int)
        within = ((index >= 0) & (index < volume.values.shape)).all(-1)
        index[~within] = 0
        return np.where(within, volume.values[tuple(np.moveaxis(index, -1, 0))], 0)

    truth, aligned = look_up(pair.fixed_labels, points), look_up(pair.moving_labels, points)

    def mean_dice(transform):
        carried = look_up(pair.moving_labels, transform.map_points(points))
        both = [n for n in (1, 2, 3, 4) if (truth == n).any() and (aligned == n).any()]
        return np.mean(
            [
                2
                * ((carried == n) & (truth == n)).sum()
                / ((carried == n).sum() + (truth == n).sum())
                for n in both
            ]
        )

    options = {"affine": "none", "size": 26, "device": "cpu", "keep": "last"}
    plain = register(pair, replay.network, **options)
    assert values["learned"] == pytest.approx(mean_dice(plain.transform), abs=2e-3)
    with changed_gates(replay.network, [SHUFFLED], grid):
        shuffled = register(pair, replay.network, **options)
    assert values["encoder shuffled"] == pytest.approx(mean_dice(shuffled.transform), abs=2e-3)
    still = replay.conformed.transform(torch.zeros(1, 3, *grid.shape))
    assert values["before"] == pytest.approx(mean_dice(still), abs=2e-3)
    assert len(set(values.values())) == 4


def test_without_labels_it_is_the_local_correlation(pair, replay):
    bare = replace(pair, moving_labels=None)
    found = dict(measure_controls(replace(replay, pair=bare), []))
    still = replay.conformed.transform(torch.zeros(1, 3, *replay.grid.shape))
    assert found["before"] == compare_images(pair, still).local
    assert (
        found["learned"] == compare_images(pair, replay.conformed.transform(replay.run()[0])).local
    )
    assert PairMeasure(replace(replay, pair=bare)).measure == "similarity"


def test_labels_that_no_two_images_share_are_refused(pair, replay):
    other = replace(
        pair, moving_labels=pair.moving_labels.with_values(pair.moving_labels.values + 50)
    )
    other.moving_labels.values[other.moving_labels.values == 50] = 0
    with pytest.raises(InputError, match="no label in common"):
        next(measure_controls(replace(replay, pair=other), []))


def test_the_figure_draws_every_control_with_its_share(lively_network):
    controls = controls_of(lively_network(0.03))
    values = {
        c.key: 0.63 - (0.01 if c.part == "encoder" else 0.03) * n for n, c in enumerate(controls)
    }
    pairs = [ControlledPair(p.moving, p.fixed, "dice", p.values | values) for p in RING]
    rows = control_rows(pairs, controls)
    caption = controls_caption(rows)
    figure = controls_figure(rows, caption, kernels=(1, 3, 5))
    encoder, decoder = figure.axes
    names = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert names == [title_of(row, (1, 3, 5)) for row in rows[2:]] and "5×5×5 everywhere" in names
    points = [line.get_xdata()[0] for line in encoder.lines if line.get_marker() == "o"]
    shares = [
        100 * r.kept.value for r in rows if r.control is not None and r.control.part == "encoder"
    ]
    assert points == pytest.approx(shares)
    assert any(line.get_marker() == "<" for line in decoder.lines), "what lies beyond is an arrow"
    for word in (
        "all passes",
        "6 pairs of 6 images",
        "0.533 before",
        "0.630 as learned",
        "over subjects",
    ):
        assert word in caption
    assert "one pair" in controls_caption(control_rows(RING[:1], CONTROLS))
    with pytest.raises(ValueError, match="no control"):
        controls_figure(control_rows(RING, []))
