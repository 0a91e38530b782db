"""Drawn torsos: people that differ as people do, seen as CT sees them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.training.recipes import recipe, torso_validation_pairs
from napari_shmoareg.training.run_writer import measures_of_kind
from napari_shmoareg.training.synthesis import Subject, SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings
from napari_shmoareg.training.torso import drawing as drawing_module
from napari_shmoareg.training.torso.anatomy import Torso
from napari_shmoareg.training.torso.contrast import (
    HOUNSFIELD,
    LABELS,
    NAMES,
    PHASES,
    SAME_CONTRAST,
    draw_hounsfield,
    scan,
    to_unit,
)
from napari_shmoareg.training.torso.drawing import draw_torso
from napari_shmoareg.training.validation import validate

BOX = ((-225, -190, -270), (225, 160, 230))
SPACING = 6.0
DRAWING = SynthesisSettings(torso=1.0, size=(28, 32))
ALIKE_PAIRS = replace(
    DRAWING, pose_angle=0.0, angle=0.0, scale=0.0, torso_shift=0.0, torso_warp=0.0, torso_cut=0.0
)


def person(seed: int) -> Torso:
    return Torso.random(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def people() -> list[tuple[Torso, Subject]]:
    return [(torso, draw_torso(torso, *BOX, SPACING)) for torso in map(person, range(6))]


def organ(subject: Subject, label: str) -> np.ndarray:
    return subject.labels[subject.classes.numpy()] == LABELS.index(label) + 1


def centre(subject: Subject, label: str) -> np.ndarray:
    index = np.argwhere(organ(subject, label)).mean(0)
    return np.linalg.inv(subject.to_index)[:3] @ [*index, 1.0]


def test_every_tissue_has_a_contrast_and_every_label_a_name():
    assert set(HOUNSFIELD) == set(NAMES) and len(set(NAMES)) == len(NAMES) < 256
    assert set(SAME_CONTRAST) | set(SAME_CONTRAST.values()) <= set(NAMES)
    assert 8 <= len(LABELS) <= 40


def test_organs_have_the_size_that_they_have_in_people(people):
    limits = {  # ml
        "liver": (600, 2500), "spleen": (60, 450), "right kidney": (75, 400), "left kidney": (75, 400),
        "pancreas": (20, 150), "aorta": (50, 250), "heart": (250, 1200), "stomach": (80, 900), "bladder": (15, 400),
    }  # fmt: skip
    for label, (low, high) in limits.items():
        volumes = [organ(subject, label).sum() * SPACING**3 / 1000 for _, subject in people]
        assert low < min(volumes) and max(volumes) < high, (label, volumes)
        assert max(volumes) > 1.1 * min(volumes), f"all people have the same {label}"


def test_organs_lie_where_they_lie_in_people(people):
    for _, subject in people:
        at = {label: centre(subject, label) for label in LABELS if organ(subject, label).any()}
        assert set(at) >= set(LABELS) - {"gallbladder"}
        right, front, up = range(3)
        assert at["liver"][right] > 20 and at["spleen"][right] < -40
        assert at["right kidney"][right] > 35 and at["left kidney"][right] < -35
        assert at["vena cava"][right] > at["aorta"][right]
        assert at["spine"][front] < min(
            at[name][front] for name in ("aorta", "liver", "stomach", "heart")
        )
        assert at["heart"][up] > at["liver"][up] > at["bladder"][up]
        assert abs(at["spine"][right]) < 3


def test_an_organ_is_one_piece_within_the_body(people):
    for _, subject in people:
        for label in ("liver", "spleen", "left kidney", "aorta", "heart"):
            pieces, count = ndimage.label(organ(subject, label), np.ones((3, 3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            assert count and sizes.max() > 0.93 * sizes.sum(), (label, sizes)
        classes = subject.classes.numpy()
        touching = ndimage.binary_dilation(classes == NAMES.index("air")) & (classes > 0)
        skin = {
            NAMES.index(n)
            for n in ("subcutaneous fat", "muscle", "couch shell", "couch foam", "mattress")
        }
        assert np.isin(classes[touching], list(skin)).mean() > 0.98, "organs look out of the skin"


def test_a_person_is_the_same_whatever_part_is_drawn():
    torso = person(3)
    whole = draw_torso(torso, (-201, -180, -240), (201, 120, 201), 3.0)
    part = draw_torso(torso, (-120, -90, -60), (90, 60, 60), 3.0)
    start = np.round((np.array([-120, -90, -60]) - [-201, -180, -240]) / 3.0).astype(int)
    cut = whole.classes[
        tuple(slice(s, s + n) for s, n in zip(start, part.classes.shape, strict=True))
    ]
    assert float((cut == part.classes).float().mean()) > 0.9999


def test_a_breath_moves_the_liver_and_not_the_spine(people):
    torso, _ = people[0]
    low, high = (draw_torso(replace(torso, breath=b), *BOX, SPACING) for b in (-18.0, 18.0))
    moved = {
        name: centre(high, name) - centre(low, name)
        for name in ("liver", "spleen", "right kidney", "spine")
    }
    assert moved["liver"][2] > 20 and moved["spleen"][2] > 20
    assert 8 < moved["right kidney"][2] < moved["liver"][2]
    assert np.abs(moved["spine"]).max() < 1.5
    other = draw_torso(replace(torso, moment=torso.moment + 1), *BOX, SPACING)
    once = draw_torso(torso, *BOX, SPACING)
    assert np.array_equal(organ(other, "liver"), organ(once, "liver"))
    assert not np.array_equal(
        other.classes.numpy() == NAMES.index("bowel fluid"),
        once.classes.numpy() == NAMES.index("bowel fluid"),
    )


def test_tissues_are_as_dark_and_bright_as_in_ct():
    rng = np.random.default_rng(0)
    draws = [dict(zip(NAMES, draw_hounsfield(rng)[:, 0], strict=True)) for _ in range(120)]
    order = ("air", "right lung", "visceral fat", "gallbladder", "muscle", "cortical bone")
    for each in draws:
        values = [each[name] for name in order]
        assert all(b - a > 5 for a, b in itertools.pairwise(values)), values
    bright = np.array([each["aorta"] for each in draws])
    assert (bright < 100).mean() == pytest.approx(0.2, abs=0.1), "without agent"
    assert (bright > 210).mean() == pytest.approx(0.17, abs=0.1), "arterial"
    livers = np.array([each["liver"] for each in draws])
    assert livers.std() > 15 and len(PHASES) == 4
    assert any(each["stomach fluid"] > 110 for each in draws) and any(
        each["stomach fluid"] < 60 for each in draws
    )


@pytest.mark.parametrize("window", [(-1024.0, 3000.0), (-160.0, 240.0)])
def test_an_image_is_scaled_as_a_scan_would_be(window, people):
    """What the network sees of a drawn torso is what it would see of the same values in a file."""
    rng = np.random.default_rng(1)
    classes = people[1][1].classes[None, :37, :29, :41].expand(8, -1, -1, -1)
    image = scan(classes, draw_hounsfield(rng), window, rng)
    assert image.shape == (1, 1, 37, 29, 41)
    assert float(image.min()) == 0 and float(image.max()) == 1 and torch.isfinite(image).all()
    values = rng.normal(0, 3, (30, 30, 30)) - 1000
    values[5:25, 6:26, 4:24] = rng.normal(60, 12, (20, 20, 20))
    values[10:14, 10:20, 10:20] = 700
    values = np.clip(values, *window).astype(np.float32)
    ours = to_unit(torch.as_tensor(values)[None, None])[0, 0].numpy()
    theirs = Intensity.of(Volume(values, Grid(values.shape, np.eye(4)), "v")).scale(values)
    assert np.abs(ours - theirs).max() < 0.03


def test_pairs_are_in_range_and_their_labels_are_shares():
    found = SyntheticPairs([], DRAWING, seed=2)
    labels = 0
    for index in range(4):
        pair = found[index]
        for image, shares in ((pair.moving, pair.moving_labels), (pair.fixed, pair.fixed_labels)):
            assert (
                image.shape[2:] == pair.grid.shape == shares.shape[2:]
                and 28 <= max(pair.grid.shape) <= 32
            )
            assert torch.isfinite(image).all() and 0 <= float(image.min()) < float(image.max()) <= 1
            assert 0 <= float(shares.min()) <= float(shares.max()) <= 1 + 1e-6
            assert float(shares.sum(1).max()) <= 1 + 1e-6
        assert (
            pair.moving_labels.shape == pair.fixed_labels.shape
            and pair.moving_labels.shape[1] <= DRAWING.labels
        )
        labels += pair.moving_labels.shape[1]
    assert labels > 16
    assert torch.equal(found[3].moving, SyntheticPairs([], DRAWING, seed=2)[3].moving)


@pytest.mark.slow
def test_one_person_overlaps_more_than_two_and_two_overlap_by_their_labels():
    def dice(drawing, count=6):
        found = [SyntheticPairs([], drawing, seed=5)[i] for i in range(count)]
        return float(
            np.mean([1 - float(losses.overlap(p.moving_labels, p.fixed_labels)) for p in found])
        )

    one, two = (dice(replace(ALIKE_PAIRS, torso_same=same)) for same in (1.0, 0.0))
    far = dice(replace(ALIKE_PAIRS, torso_same=0.0, torso_shift=40.0))
    assert one > two + 0.1 and two > far + 0.05
    assert two > 0.25, "a label has another meaning in the other image"


def test_an_image_that_is_cut_off_shows_nothing_there_and_no_label_of_what_it_cuts():
    drawing = replace(
        ALIKE_PAIRS,
        torso_cut=1.0,
        torso_same=1.0,
        torso_extent=((350.0, 351.0),) * 2 + ((400.0, 401.0),),
    )
    kept = SyntheticPairs([], drawing, seed=4)
    empty = 0
    for index in range(3):
        pair = kept[index]
        shown = [(image[0, 0].amax((0, 1)) > 0).numpy() for image in (pair.moving, pair.fixed)]
        for slices, shares in zip(shown, (pair.moving_labels, pair.fixed_labels), strict=True):
            place = np.flatnonzero(slices)
            assert np.array_equal(place, np.arange(place[0], place[-1] + 1)), "one stretch"
            empty += (~slices).sum()
            assert float(shares[..., torch.as_tensor(~slices)].sum()) == 0
            assert len(place) * pair.grid.spacing[2] > 110
        both = (shown[0] & shown[1]).sum()
        assert both >= 0.7 * min(s.sum() for s in shown) - 1
    assert empty > 4
    label = torch.zeros(8, 4, 4, 20, dtype=torch.uint8)
    label[..., 2:7], label[..., 10:15] = 1, 2
    assert list(drawing_module._common_labels([label, label], [(0, 20), (0, 20)])) == [1, 2]
    assert list(drawing_module._common_labels([label, label], [(0, 20), (0, 13)])) == [1]
    assert list(drawing_module._common_labels([label, label], [(4, 14), (0, 20)])) == [2], (
        "the one that is cut off least"
    )


def test_a_share_of_the_pairs_shows_torsos_and_the_others_stay_what_they_were(monkeypatch):
    shapes = SynthesisSettings(size=(10, 12))
    drawn = []
    monkeypatch.setattr(
        drawing_module, "draw_torso_pair", lambda drawing, rng, device: drawn.append(drawing)
    )
    mixed = SyntheticPairs([], replace(shapes, torso=0.5))
    for index in range(60):
        _ = mixed[index]
    assert 18 < len(drawn) < 42
    off = SyntheticPairs([], shapes)[3]
    assert torch.equal(off.moving, SyntheticPairs([], replace(shapes, torso_warp=50.0))[3].moving)


def test_validation_shows_whole_torsos_of_two_people():
    found = torso_validation_pairs(SynthesisSettings(torso=0.2), size=24, count=2)
    assert all(max(pair.grid.shape) == 24 and pair.moving_labels.shape[1] > 5 for pair in found)
    network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    result = measures_of_kind(validate(network, found), "torso")
    before, after, folding = (result[f"torso_{name}"] for name in ("before", "after", "folding"))
    assert after == pytest.approx(before, abs=2e-3) and folding == 0 and 0.1 < before < 0.9


def test_a_recipe_takes_a_share_of_torsos():
    assert recipe("small").drawing.torso == 0 and recipe("small", torso=0.4).drawing.torso == 0.4
    with pytest.raises(InputError, match=r"share of torsos must be between 0 and 1; got 1.5"):
        recipe("small", torso=1.5)
