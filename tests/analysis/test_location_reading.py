"""Which experts a location in the body chose."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.location import read_location
from napari_shmoareg.experts.maps import expert_maps, token_loads


@pytest.fixture
def scene(registration):
    """Of the oblique, anisotropic pair; the network grid is 20x16x13 or so, no multiple of the
    strides.
    """
    assert any(n % 4 for n in registration.network_grid.shape)
    return registration


def locations(grid, count=60):
    """World points inside a grid: random ones, and ones near its corners, edges and faces."""
    generator = np.random.default_rng(0)
    top = np.array(grid.shape) - 1
    index = generator.uniform(-0.499, top + 0.499, (count, 3))
    ends = [[-0.499, -0.1, 0.3 * n, n + 0.1, n + 0.499] for n in top]
    return grid.to_world(np.concatenate([index, np.array(list(product(*ends)))]))


def test_the_cell_is_the_one_whose_centre_is_nearest(scene):
    network = scene.network_grid
    every = {}
    for stride in {load.stride for load in token_loads(scene)} | {
        m.stride for m in expert_maps(scene)
    }:
        grid = network.coarsen(stride)
        index = np.stack(
            np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1
        ).reshape(-1, 3)
        every[stride] = index, grid.to_world(index)
    for point in locations(network):
        reading = read_location(scene, point)
        assert (reading.point == point).all()
        nearest = {
            stride: tuple(index[np.linalg.norm(centres - point, axis=1).argmin()])
            for stride, (index, centres) in every.items()
        }
        for cell in reading.cells:
            assert cell.cell == nearest[cell.stride], (cell.gate, point)
            assert cell.centre == pytest.approx(network.coarsen(cell.stride).to_world(cell.cell))
            assert cell.size == pytest.approx(cell.stride * np.array(network.spacing))


def test_a_reading_says_what_the_gates_decided_there(scene, registration):
    for point in locations(scene.network_grid, 20)[:40]:
        reading = read_location(scene, point)
        assert len(reading.cells) == len(registration.routing)
        for cell in reading.cells:
            (record,) = registration.routing.select(**cell.gate._asdict())
            experts, weights, values = (
                t[0][:, *cell.cell].tolist()
                for t in (
                    record.routing.experts,
                    record.routing.weights,
                    record.routing.probabilities,
                )
            )
            assert list(cell.experts) == experts and cell.num_experts == record.num_experts
            assert list(cell.weights) == pytest.approx(weights) and list(cell.values) == values
            ordered = sorted(values, reverse=True)
            assert cell.margin == pytest.approx(ordered[len(experts) - 1] - ordered[len(experts)])
            assert 0 <= cell.entropy <= 1
            if cell.part == "encoder":
                assert sum(cell.weights) == pytest.approx(1)
            else:
                assert cell.weights == (values[cell.experts[0]],)


def test_cells_come_by_layer_block_and_image_then_by_direction(scene):
    reading = read_location(scene, scene.network_grid.centre)
    assert [tuple(p for p in c.gate if p is not None) for c in reading.cells] == [
        ("encoder", 1, 0, "moving"),
        ("encoder", 1, 0, "fixed"),
        *(("encoder", 2, block, image) for block in (0, 1) for image in ("moving", "fixed")),
        *(("decoder", layer, direction) for layer in (1, 2) for direction in "xyz"),
    ]
    assert reading.cells == reading.encoder + reading.decoder
    assert [c.direction for c in reading.select(part="decoder", layer=2)] == ["x", "y", "z"]


def test_moving_and_fixed_tokens_of_a_place_differ_and_are_not_swapped(scene, registration):
    values = {}
    for image in ("moving", "fixed"):
        (record,) = registration.routing.select(part="encoder", layer=1, block=0, image=image)
        (cell,) = read_location(scene, scene.network_grid.centre).select(
            layer=1, block=0, image=image
        )
        values[image] = np.array(cell.values)
        assert (values[image] == record.routing.probabilities[0][:, *cell.cell].numpy()).all()
    assert np.abs(values["moving"] - values["fixed"]).max() > 1e-4


def test_without_the_gates_the_choices_are_known_and_their_values_are_not(
    scene, without_gate_values
):
    point = scene.network_grid.centre
    bare, full = read_location(without_gate_values(scene), point), read_location(scene, point)
    for cell, known in zip(bare.cells, full.cells, strict=True):
        assert (cell.gate, cell.cell, cell.experts) == (known.gate, known.cell, known.experts)
        assert (cell.values, cell.entropy, cell.margin) == (None, None, None)
        assert (cell.weights == known.weights) is (cell.part == "encoder")
        assert cell.part == "encoder" or np.isnan(cell.weights).all()


@pytest.mark.parametrize("index", [(-0.51, 5, 5), (5, 1e3, 5), (5, 5, -40)])
def test_a_place_outside_is_refused_with_where_the_grid_reaches(scene, index):
    with pytest.raises(
        InputError, match=r"outside the network's field of view.*R -?\d+ to -?\d+, A .*oblique"
    ):
        read_location(scene, scene.network_grid.to_world(index))


@pytest.mark.parametrize("point", [(1, 2), (1, 2, np.nan), np.zeros((2, 3))])
def test_a_place_is_three_finite_numbers(scene, point):
    with pytest.raises(InputError, match="three finite numbers"):
        read_location(scene, point)


def test_the_walls_of_the_field_of_view_belong_to_it(scene):
    grid = scene.network_grid
    for corner in grid.corners():
        for cell in read_location(scene, corner).cells:
            assert (
                np.abs(np.array(cell.cell) - grid.coarsen(cell.stride).to_index(corner)).max() <= 1
            )
