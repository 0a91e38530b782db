"""The convolutions of SHMoE."""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.model.shmoe import SLAB, same_convolution


@pytest.mark.parametrize("shape", [(7, 6, 5), (SLAB + 3, 4, 5), (2 * SLAB + 1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("size", [5, 7])
def test_a_large_kernel_convolved_by_planes_is_the_convolution(shape, size):
    features = torch.randn(2, 4, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, size, size, size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    whole, by_planes = (
        convolve(features, weight, bias)
        for convolve in (
            lambda x, w, b: torch.nn.functional.conv3d(x, w, b, padding=size // 2),
            same_convolution,
        )
    )
    torch.testing.assert_close(by_planes, whole)
    wanted, found = (
        torch.autograd.grad(y.square().sum(), (features, weight, bias)) for y in (whole, by_planes)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(same_convolution(features, weight, bias), whole)
