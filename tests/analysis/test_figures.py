"""Pictures of a registration and of its experts."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from skimage import color

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.figures.experts import expert_map_figure, load_figure
from napari_shmoareg.figures.palette import expert_colours
from napari_shmoareg.figures.panels import cut, middle
from napari_shmoareg.figures.registration import (
    FIXED_COLOUR,
    FOLDING_COLOUR,
    MOVED_COLOUR,
    jacobian_figure,
    overview,
)
from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.model import RoutingTrace


def _drawn(figure):
    """The picture as (rows, columns, 3) numbers in 0..255."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    buffer.seek(0)
    return np.rint(imread(buffer)[..., :3] * 255).astype(int)


def _pixels_of(picture, colour, tolerance=30):
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=-1) <= tolerance).sum())


def _texts(figure):
    texts = [
        t.get_text() for axes in figure.axes for t in (axes.title, axes.yaxis.label, *axes.texts)
    ]
    return [*texts, *(t.get_text() for legend in figure.legends for t in legend.get_texts())]


def _overlapping_titles(figure):
    """Pairs of titles that are drawn over each other, or titles that leave the page."""
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.title.get_text()]
    page = figure.bbox
    outside = [b for b in boxes if b.x0 < page.x0 or b.x1 > page.x1 or b.y1 > page.y1]
    return outside + [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)]


def test_drawing_needs_no_window_and_no_title_covers_another_or_leaves_the_page(registration):
    for figure in (
        overview(registration),
        jacobian_figure(registration),
        expert_map_figure(registration),
        load_figure(ExpertLoad.of(registration.routing)),
    ):
        FigureCanvasAgg(figure)
        assert not _overlapping_titles(figure)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_overview_shows_every_image_in_true_proportions(registration):
    figure = overview(registration, notes={"warped": "Dice 0.815"})
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * 5
    width, height, thickness = (n * s for n, s in zip((37, 29, 23), (3.0, 3.0, 2.0), strict=True))
    sizes = [(height, thickness), (width, thickness), (width, height)]  # sagittal, coronal, axial
    for row, size in enumerate(sizes):
        for axes in panels[5 * row : 5 * row + 5]:
            left, right, bottom, top = axes.images[0].get_extent()
            assert (right - left, top - bottom) == pytest.approx(size)
            assert axes.get_aspect() == 1
    shown = {"fixed", "moving (as filed)", "warped", "Dice 0.815", "sagittal", "coronal", "axial"}
    assert shown <= set(_texts(figure))


def test_the_overview_draws_the_labels_of_both_images_when_there_are_any(registration):
    picture = _drawn(overview(registration))
    assert _pixels_of(picture, FIXED_COLOUR) > 100 and _pixels_of(picture, MOVED_COLOUR) > 100
    bare = replace(registration.pair, moving_labels=None, fixed_labels=None)
    picture = _drawn(overview(replace(registration, pair=bare, warped_labels=None)))
    assert _pixels_of(picture, FIXED_COLOUR) == 0 == _pixels_of(picture, MOVED_COLOUR)


def test_the_difference_after_is_that_of_the_warped_image(registration):
    fixed = registration.pair.fixed
    moving = fixed.with_values(np.roll(fixed.values, 3, axis=0))
    perfect = replace(
        registration, pair=VolumePair(moving, fixed), warped=fixed, warped_labels=None
    )
    panels = [axes for axes in overview(perfect).axes if axes.images]
    assert all(np.abs(panels[n].images[0].get_array()).max() < 0.02 for n in (4, 9, 14))
    assert all(np.abs(panels[n].images[0].get_array()).max() > 0.3 for n in (3, 8, 13))


def test_expert_maps_are_red_white_and_blue_with_their_kernels_in_the_legend(registration):
    figure = expert_map_figure(registration)
    picture = _drawn(figure)
    assert _pixels_of(picture, "#2f5fd0") + _pixels_of(picture, "#e03131") > 100
    texts = set(_texts(figure))
    assert {"expert 0: 1×1×1", "expert 1: 3×3×3", "expert 2: 5×5×5"} <= texts
    assert {f"{axis}-direction" for axis in "xyz"} <= texts
    assert {"full resolution", "1/2 resolution"} <= texts
    assert expert_colours(3, "paper")[1] == "#ffffff"


def test_an_expert_map_is_drawn_with_its_own_voxels(registration):
    figure = expert_map_figure(registration, view="coronal")
    drawn = [axes.images[0].get_array().shape for axes in figure.axes]
    i, _, k = registration.network_grid.shape
    assert drawn[1:4] == [(k, i)] * 3
    assert drawn[5:8] == [(-(-k // 2), -(-i // 2))] * 3


def test_a_network_without_experts_has_no_expert_pictures(registration):
    empty = replace(registration, routing=RoutingTrace(()))
    with pytest.raises(ValueError, match="no SHMoE"):
        expert_map_figure(empty)
    with pytest.raises(ValueError, match="no experts"):
        load_figure(ExpertLoad.of(empty.routing))


def test_load_bars_are_as_high_as_the_shares(registration):
    load = ExpertLoad.of(registration.routing)
    figure = load_figure(load)
    (axes,) = [a for a in figure.axes if a.get_title() == "encoder layer 2, block 1"]
    heights = [bar.get_height() for bar in axes.patches]
    shares = load.select(part="encoder", layer=2, block=1).share
    assert heights == pytest.approx(100 * np.concatenate(list(shares.values())))
    names = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert names == ["moving", "fixed"] == [place.image for place in shares]
    assert "Share of selections" in figure.get_suptitle()


def test_folding_is_marked_and_counted(registration):
    smooth = replace(
        registration, jacobian=registration.jacobian.with_values(np.ones((37, 29, 23), np.float32))
    )
    assert _pixels_of(_drawn(jacobian_figure(smooth)), FOLDING_COLOUR) < 600, (
        "only the key may have the colour"
    )
    values = np.ones((37, 29, 23), np.float32)
    index = np.rint(registration.pair.fixed.grid.to_index(middle(registration.pair.fixed))).astype(
        int
    )
    values[tuple(slice(n - 3, n + 3) for n in index)] = -0.5
    folded = replace(registration, jacobian=registration.jacobian.with_values(values))
    figure = jacobian_figure(folded)
    assert _pixels_of(_drawn(figure), FOLDING_COLOUR) > 1500
    assert any("folded: 0.875 % of voxels" in text for text in _texts(figure))


def test_the_bent_grid_moves_by_the_deformation(registration):
    field = registration.transform.field
    vectors = np.zeros_like(field.vectors)
    straight = replace(registration.transform, field=replace(field, vectors=vectors))
    moved = replace(
        registration.transform,
        field=replace(
            field, vectors=vectors + registration.pair.fixed.grid.affine[:3, 0].astype(np.float32)
        ),
    )
    drawn = []
    for transform in (straight, moved):
        axes = [
            a
            for a in jacobian_figure(replace(registration, transform=transform)).axes
            if a.get_title() == "axial"
        ]
        below = axes[0].figure.axes[5]
        drawn.append(np.concatenate([s for c in below.collections for s in c.get_segments()]))
    assert np.linalg.norm(drawn[1] - drawn[0], axis=1) == pytest.approx(3.0, abs=1e-3)
    assert cut(
        registration.jacobian, registration.pair.fixed.grid.centre, "axial"
    ).pixels.shape == (29, 37)


# linear RGB as seen with full protanopia, deuteranopia and tritanopia (Machado et al. 2009)
VISION = {
    "usual": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def _seen(rgb, vision):
    """Lab colours (n, 3) of RGB values, as an eye sees them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    there = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    back = np.where(there <= 0.0031308, 12.92 * there, 1.055 * there ** (1 / 2.4) - 0.055)
    return color.rgb2lab(back)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_of_experts_are_told_apart_over_any_grey(vision):
    greys = np.repeat(np.linspace(0.05, 0.95, 7)[:, None], 3, axis=1)
    rgb = [np.array([int(c[n : n + 2], 16) / 255 for n in (1, 3, 5)]) for c in expert_colours(3)]
    over = [_seen(0.5 * greys + 0.5 * each, vision) for each in rgb]
    for one, other in combinations([*over, _seen(greys, vision)], 2):
        assert color.deltaE_ciede2000(one, other).min() > 10
