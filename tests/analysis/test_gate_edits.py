"""What a change does to gate values, cell by cell, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from napari_shmoareg.experts.gate_edits import cells_in, edit
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.model.routing import choose


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_silenced_expert_is_replaced_by_the_next_best_with_its_own_value(top_k):
    values = torch.rand(2, 3, 4, 2, 6)
    expert = torch.randint(-1, 6, (2, 3, 4, 2))
    after = edit(values, expert, "silence", top_k)
    for cell in np.ndindex(2, 3, 4, 2):
        order = [int(n) for n in values[cell].argsort(descending=True) if n != expert[cell]]
        weights, ids = choose(after[cell], top_k, dim=-1)
        assert ids.tolist() == order[:top_k]
        assert torch.equal(weights, values[cell][order[:top_k]])


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_forced_expert_takes_the_place_and_the_value_of_the_weakest_chosen_one(top_k):
    values = torch.rand(2, 3, 4, 2, 6)
    expert = torch.randint(-1, 6, (2, 3, 4, 2))
    after = edit(values, expert, "force", top_k)
    for cell in np.ndindex(2, 3, 4, 2):
        before = values[cell].argsort(descending=True)[:top_k].tolist()
        wanted = int(expert[cell])
        weights, ids = choose(after[cell], top_k, dim=-1)
        if wanted < 0 or wanted in before:
            assert torch.equal(after[cell], values[cell])
        else:
            assert ids.tolist() == [*before[:-1], wanted]
            assert torch.equal(weights, values[cell][before])


def test_an_expert_is_forced_where_all_gate_values_are_equal():
    values = torch.full((1, 2, 2, 2, 6), 0.5)
    for expert in range(6):
        for top_k in (1, 2):
            after = edit(values, torch.full((1, 2, 2, 2), expert), "force", top_k)
            assert (choose(after, top_k, dim=-1)[1] == expert).any(-1).all()


def test_a_cell_is_in_a_region_by_half_of_its_volume(registration):
    grid = registration.network_grid
    values = np.zeros(grid.shape, np.uint8)
    values[:3, :2, :4] = 1
    found = cells_in(Volume(values, grid, "corner", is_labels=True), grid, 2)
    shares = F.avg_pool3d(
        torch.from_numpy(values[None, None].astype(np.float32)), 2, ceil_mode=True
    )[0, 0].numpy()
    assert found.shape == grid.coarsen(2).shape
    np.testing.assert_array_equal(found, shares >= 0.5)
    # half of the second cell along the first axis
    assert found[:2, :1, :2].all() and found.sum() == 4


def test_a_cell_that_reaches_beyond_the_image_counts_by_what_of_it_is_image():
    # the third cell along the first axis holds one voxel of the image, not two
    grid = Grid((5, 4, 4), np.eye(4))
    values = np.zeros(grid.shape, np.uint8)
    values[4, :, :1] = 1  # a quarter of the whole cell, half of what is image
    assert np.argwhere(
        cells_in(Volume(values, grid, "edge", is_labels=True), grid, 2)
    ).tolist() == [
        [2, 0, 0],
        [2, 1, 0],
    ]
