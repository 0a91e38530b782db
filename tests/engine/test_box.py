"""Box means against loops, and their way back against numbers."""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.registration.similarity import box_filter, box_mean

VALUES = torch.rand(2, 3, 5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [1, 3, 7, 13])
def test_means_are_over_what_lies_inside(window):
    half = window // 2
    got, sums = box_mean(VALUES, window), box_filter(VALUES, window)
    for p in ((0, 0, 0), (2, 3, 1), (4, 5, 3), (4, 0, 2)):
        part = VALUES[(..., *[slice(max(0, c - half), c + half + 1) for c in p])]
        torch.testing.assert_close(got[(..., *p)], part.mean((2, 3, 4)))
        torch.testing.assert_close(sums[(..., *p)], part.sum((2, 3, 4)) / window**3)


def test_the_way_back_is_the_gradient():
    values = VALUES[:1, :1].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: box_mean(v, 3).square(), (values,))
