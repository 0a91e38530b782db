"""The contact sheet of synthetic pairs."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_shmoareg.figures.registration import COLUMNS, contact_sheet
from napari_shmoareg.geometry import Grid
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.training.synthesis import SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings

SHAPE = (12, 16, 10)


@pytest.fixture
def drawn():
    drawing = SynthesisSettings(
        extent=((48.0, 50.0), (64.0, 66.0), (40.0, 44.0)), size=(16, 20), labels=4
    )
    pairs = SyntheticPairs([], drawing, seed=2)
    return [pairs[i] for i in range(5)]


@pytest.fixture
def marked():
    """A pair whose labels stand in the plane k = 7 alone: the first moving on the left, the second
    fixed in front.
    """
    moving, fixed = torch.full((2, 1, 1, *SHAPE), 0.25)
    fixed[0, 0, 3, 14, 7] = 1.0
    moving_labels, fixed_labels = torch.zeros(2, 1, 2, *SHAPE)
    moving_labels[0, 0, 2:4, 5:8, 7] = 0.9
    moving_labels[0, 1, 4, 5, 7] = 0.4  # less than what is left of the voxel
    fixed_labels[0, 1, 6:9, 12:15, 7] = 1.0
    grid = Grid(SHAPE, np.diag([1.5, 1.5, 1.5, 1.0]))
    return Conformed(
        moving, fixed, grid, np.eye(4), moving_labels=moving_labels, fixed_labels=fixed_labels
    )


def panels(figure):
    return [[np.ma.asarray(image.get_array()) for image in axes.images] for axes in figure.axes]


def test_every_pair_has_two_images_two_sets_of_labels_and_a_title(drawn):
    figure = contact_sheet(drawn)
    assert [len(images) for images in panels(figure)] == [1, 1, 2, 2] * len(drawn)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titles) == len(drawn)
    for number, (title, pair) in enumerate(zip(titles, drawn, strict=True), start=1):
        shape = "×".join(map(str, pair.grid.shape))
        assert title == f"{number}: {shape} voxels, {pair.grid.spacing[0]:.1f} mm"
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == list(COLUMNS) * 2  # once above each column of pairs


def test_the_slice_is_the_one_with_the_labels_and_is_seen_from_the_usual_side(marked):
    (moving,), (fixed,), (_, first), (_, second) = panels(contact_sheet([marked]))
    assert moving.shape == (SHAPE[1], SHAPE[0])  # first row at the bottom, j upwards
    # the patient's right on the left
    assert fixed[14, SHAPE[0] - 1 - 3] == 1.0 and np.sum(fixed == 1) == 1
    assert (~np.ma.getmaskarray(first)).nonzero()[0].tolist() == [5, 5, 6, 6, 7, 7]
    assert set(first.compressed()) == {0} and set(second.compressed()) == {1}
    assert np.array_equal(
        ~np.ma.getmaskarray(second), marked.fixed_labels[0, 1, :, :, 7].numpy().T[:, ::-1] > 0
    )


def test_pairs_without_labels_show_their_middle(marked):
    bare = replace(marked, moving_labels=None, fixed_labels=None)
    bare.moving[0, 0, :, :, 5] = 0.75
    images = panels(contact_sheet([bare]))
    assert [len(found) for found in images] == [1, 1, 1, 1]
    assert float(images[0][0].min()) == 0.75


def test_a_sheet_of_one_pair_is_drawn_without_a_window(marked):
    buffer = io.BytesIO()
    contact_sheet([marked]).savefig(buffer, format="png", dpi=60)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_titles_stay_on_the_page_and_apart(drawn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = contact_sheet(drawn)
    FigureCanvasAgg(figure).draw()
    boxes = [
        t.get_window_extent() for axes in figure.axes for t in (axes._left_title,) if t.get_text()
    ]
    assert all(
        box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes
    )
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
