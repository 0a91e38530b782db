"""Windows: cut and join, shifts, masks."""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.model.windows import MASKED, WindowLayout

LAYOUTS = [
    WindowLayout((6, 5, 7), (6, 5, 7), (2, 3, 4), shifted=False),
    WindowLayout((6, 5, 7), (5, 5, 6), (2, 3, 4), shifted=True),
    WindowLayout((3, 9, 2), (3, 9, 2), (4, 4, 4), shifted=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_join_undoes_cut(layout):
    tokens = torch.randn(2, *layout.grid, 5)
    assert torch.equal(layout.join(layout.cut(tokens)), tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_tell_which_token_a_row_of_a_window_is(layout):
    axes = torch.meshgrid(*(torch.arange(n) for n in layout.grid), indexing="ij")
    rows = layout.cut(torch.stack(axes, -1)[None])
    place = layout.positions()
    real = (place < torch.tensor(layout.grid)).all(-1)
    assert torch.equal(rows[real], place[real])
    assert int(real.sum()) == layout.grid[0] * layout.grid[1] * layout.grid[2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_blocks_padding_and_what_the_shift_brought_together(layout):
    mask, place = layout.mask(), layout.positions()
    if mask is None:
        mask = torch.zeros(place.shape[0], 1, place.shape[1], place.shape[1])
    for w in range(0, place.shape[0], 3):
        for q in range(0, place.shape[1], 2):
            for k in range(place.shape[1]):
                near = all(
                    abs(int(a) - int(b)) < n
                    for a, b, n in zip(place[w, q], place[w, k], layout.window, strict=True)
                )
                real = all(int(a) < n for a, n in zip(place[w, k], layout.valid, strict=True))
                assert (float(mask[w, 0, q, k]) == 0) == (near and real)
    assert set(mask.unique().tolist()) <= {0.0, MASKED}


def test_an_axis_that_fits_into_the_window_is_not_shifted():
    layout = WindowLayout((3, 9, 2), (3, 9, 2), (4, 4, 4), shifted=True)
    assert layout.window == (3, 4, 2)
    assert layout.shift == (0, 2, 0)


def test_an_unpadded_unshifted_grid_needs_no_mask():
    assert WindowLayout((4, 6, 8), (4, 6, 8), (2, 3, 4), shifted=False).mask() is None


def test_relative_index_depends_on_the_offset_alone():
    layout = WindowLayout((2, 9, 9), (2, 9, 9), (4, 3, 2), shifted=False)
    index = layout.relative_index()
    axes = torch.meshgrid(*(torch.arange(n) for n in layout.window), indexing="ij")
    place = torch.stack(axes, -1).view(-1, 3)
    seen: dict[tuple[int, ...], int] = {}
    for q in range(len(place)):
        for k in range(len(place)):
            offset = tuple((place[q] - place[k]).tolist())
            assert seen.setdefault(offset, int(index[q, k])) == int(index[q, k])
    assert len(set(seen.values())) == len(seen)
    assert int(index.max()) < 7 * 5 * 3
