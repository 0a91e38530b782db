"""Losses against analytic facts and independent implementations."""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.registration import losses


def test_lncc_is_blind_to_a_change_of_contrast_and_mse_is_not():
    torch.manual_seed(0)
    fixed = torch.rand(1, 1, 15, 13, 17)
    other = 0.2 + 0.5 * (1 - fixed)
    assert float(losses.lncc(other, fixed)) < 0.01
    assert float(losses.lncc(torch.rand_like(fixed), fixed)) > 0.9
    assert float(losses.mse(other, fixed)) > 0.05


def test_lncc_is_one_where_nothing_has_contrast():
    flat = torch.full((1, 1, 12, 12, 12), 0.3)
    assert float(losses.lncc(flat, flat)) == pytest.approx(1)


def test_lncc_equals_the_loop_over_neighbourhoods():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 5, 6, 4, dtype=torch.float64)
    total = 0.0
    for i in range(5):
        for j in range(6):
            for k in range(4):
                box = (
                    slice(max(i - 1, 0), i + 2),
                    slice(max(j - 1, 0), j + 2),
                    slice(max(k - 1, 0), k + 2),
                )
                x, y = a[0, 0][box].flatten(), b[0, 0][box].flatten()
                # Sums of a box at the border are means over what lies inside, one axis after the
                # other.
                cov = ((x - x.mean()) * (y - y.mean())).mean()
                total += float(cov**2 / (x.var(unbiased=False) * y.var(unbiased=False) + 1e-5))
    assert float(losses.lncc(a, b, window=3)) == pytest.approx(1 - total / 120, abs=1e-9)


def test_smoothness_of_a_ramp_is_the_square_of_its_slope_over_three():
    u = torch.zeros(1, 3, 5, 6, 7)
    u[:, 1] = 0.3 * torch.arange(6.0).view(1, 1, 6, 1)
    # one of three components, one of three axes
    assert float(losses.smoothness(u)) == pytest.approx(0.09 / 3 / 3)


def test_smoothness_sees_a_checkerboard():
    i, j, k = torch.meshgrid(*(torch.arange(n) for n in (6, 5, 4)), indexing="ij")
    u = ((i + j + k) % 2 * 2.0 - 1).expand(1, 3, 6, 5, 4)
    assert float(losses.smoothness(u)) == pytest.approx(4)


def test_overlap_of_equal_labels_is_zero_and_of_disjoint_ones_one():
    a = torch.zeros(1, 2, 6, 5, 4)
    a[:, 0, :2], a[:, 1, 3:] = 1, 1
    b = a.flip(1)
    assert float(losses.overlap(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(losses.overlap(a, b)) == pytest.approx(1)


def test_overlap_leaves_out_a_label_that_neither_image_has():
    a = torch.zeros(1, 2, 6, 5, 4)
    a[:, 0, :2] = 1
    assert float(losses.overlap(a, a)) == pytest.approx(0, abs=1e-6)


def test_the_quantile_is_estimated_well_from_a_part_of_many_voxels():
    torch.manual_seed(0)
    error = torch.rand(1, 1, 80, 70, 60)
    labels = losses.routing_labels(
        error, torch.zeros(1, 1, 80, 70, 60, dtype=torch.int64), 3, quantile=0.3
    )
    assert float(labels[:, 0].mean()) == pytest.approx(0.3, abs=0.01)


def test_every_sample_has_a_quantile_of_its_own():
    error = torch.rand(2, 1, 8, 9, 7)
    error[1] *= 1000
    labels = losses.routing_labels(
        error, torch.zeros(2, 1, 8, 9, 7, dtype=torch.int64), 3, quantile=0.5
    )
    for sample in labels[:, 0]:
        assert float(sample.mean()) == pytest.approx(0.5, abs=0.01)


def test_load_balance_is_one_for_even_loads_and_n_over_k_for_a_single_choice():
    from napari_shmoareg.model import GateId, RoutedLayer, Routing, RoutingTrace

    def trace(experts, probabilities):
        routing = Routing(probabilities, experts, torch.ones_like(experts, dtype=torch.float32) / 2)
        return RoutingTrace((RoutedLayer(GateId("encoder", 1, 0, "moving"), 4, routing),))

    even = torch.arange(6).view(1, 2, 3, 1, 1)
    same = torch.tensor([0, 1]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)
    flat = torch.full((1, 6, 3, 1, 1), 1 / 6)
    sure = torch.zeros(1, 6, 3, 1, 1)
    sure[:, :2] = 0.5
    assert float(losses.load_balance(trace(even, flat))) == pytest.approx(1)
    assert float(losses.load_balance(trace(same, sure))) == pytest.approx(3)


def test_bending_is_free_for_affine_motion_and_counts_roughness():
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (7, 6, 5)), indexing="ij")
    )
    matrix = torch.tensor(
        [[0.2, -0.1, 0.3], [0.0, 0.4, -0.2], [0.1, 0.05, -0.3]], dtype=torch.float64
    )
    affine = torch.einsum("ab,bijk->aijk", matrix, grid)[None] + 3
    assert float(losses.bending(affine)) == pytest.approx(0, abs=1e-20)
    assert float(losses.smoothness(affine)) > 0.01
    checkerboard = ((-1) ** grid.sum(0)).expand(1, 3, -1, -1, -1)
    # every second difference is 4 or -4
    assert float(losses.bending(checkerboard)) == pytest.approx(16)


def test_bending_of_a_parabola_is_its_curvature():
    x = torch.arange(8, dtype=torch.float64).view(1, 1, 8, 1, 1)
    displacement = torch.zeros(1, 3, 8, 6, 5, dtype=torch.float64)
    # second difference 1 along one axis, in one of three components
    displacement[:, :1] = 0.5 * x**2
    assert float(losses.bending(displacement)) == pytest.approx(1 / 3 / 9)
