"""uniGradICON as a peer: its weights, intensities and geometry; with a stand-in where its package
is not installed.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation import baselines
from napari_shmoareg.evaluation.baselines import UniGradICON, scale, voxels_of
from napari_shmoareg.geometry import DisplacementField, Grid, Volume


class Shift(nn.Module):
    """Called as the network is; moves all positions by its only parameter, in units of the cube."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))
        line = torch.linspace(0, 1, side)
        identity = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))[None]
        self.register_buffer("identity_map", identity, persistent=False)

    def forward(self, moving, fixed):
        self.seen = moving, fixed
        return lambda positions: positions + self.shift[None, :, None, None, None]


@pytest.fixture
def side(monkeypatch) -> int:
    """Of a smaller lattice, on which `Shift` stands in for the network."""
    monkeypatch.setattr(baselines, "SIDE", 20)
    monkeypatch.setattr(baselines, "build_network", lambda: Shift(20))
    return 20


def test_positions_in_the_reversed_unit_cube_become_mm_on_the_fixed_grid(
    pair, side, tmp_path, monkeypatch
):
    """By 2, -1 and 1 voxels of the fixed grid along its axes, which are of 37, 29 and 23 voxels of
    3x3x2 mm.
    """
    monkeypatch.setattr(baselines, "align", lambda pair, mode: SimpleNamespace(matrix=np.eye(4)))
    grid, move = pair.fixed.grid, np.array([2.0, -1.0, 1.0])
    shift = torch.tensor(move / grid.shape * side / (side - 1)).float().flip(0)
    torch.save({"shift": shift}, tmp_path / "weights.trch")
    method = UniGradICON(tmp_path / "weights.trch", "cpu")
    found = method.run(pair)
    np.testing.assert_allclose(
        found.vectors, np.broadcast_to(grid.affine[:3, :3] @ move, (*grid.shape, 3)), atol=1e-4
    )
    for seen, values in zip(method.network.seen, (None, pair.fixed.values), strict=True):
        assert seen.shape == (1, 1, side, side, side) and seen.min() >= 0 and seen.max() <= 1
        if values is not None:  # the second one is the fixed image
            # along the last axis
            middle = seen[0, 0].mean(dim=(1, 2)), scale(pair.fixed).mean(axis=(0, 1))
            stretched = F.interpolate(
                torch.from_numpy(middle[1])[None, None], size=side, mode="linear"
            )[0, 0]
            assert np.corrcoef(middle[0], stretched)[0, 1] > 0.99


def test_a_map_that_is_linear_on_the_lattice_is_linear_on_the_grid():
    n, shape = 12, (7, 9, 23)
    slope = np.array([[0.1, 0.0, 0.02], [0.0, -0.05, 0.03], [0.04, 0.0, 0.2]])
    lattice = np.stack(np.meshgrid(*[np.linspace(0, 1, n)] * 3, indexing="ij"))
    found = voxels_of(torch.from_numpy(np.einsum("ab,b...->a...", slope, lattice))[None], shape)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    # of voxel centres, in the cube between outer lattice centres
    place = ((index + 0.5) / shape * n - 0.5) / (n - 1)
    expected = np.einsum("ab,...b->...a", slope, place) * (n - 1) / n * shape
    inner = ((place >= 0) & (place <= 1)).all(axis=-1)  # beyond, the edge's value goes on
    assert inner.mean() > 0.5
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)


def _image(values) -> Volume:
    values = np.asarray(values, dtype=np.float32)
    return Volume(values, Grid(values.shape, np.eye(4)), "moving")


def test_anything_but_a_ct_is_scaled_from_its_least_value_to_its_99_percent_quantile():
    values = np.zeros((10, 10, 11))
    values[2:8, 2:8, 2:8] = np.linspace(-5, 300, 216).reshape(6, 6, 6)
    scaled = scale(_image(values))
    top = np.quantile(values.astype(np.float32), 0.99)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    assert (
        scaled[0, 0, 0] == pytest.approx(5 / (top + 5), rel=1e-5)
        and (scaled == 1).sum() == (values >= top).sum()
    )


def test_a_ct_is_scaled_by_hounsfield_units_and_one_in_a_window_is_not():
    values = np.full((8, 8, 8), -1024.0)
    values[2:6, 2:6, 2:6] = 50
    values[4, 4, 4] = 1500
    scaled = scale(_image(values))
    assert (scaled[0, 0, 0], scaled[4, 4, 4]) == (0, 1) and scaled[3, 3, 3] == pytest.approx(
        1050 / 2000
    )
    windowed = scale(_image(values.clip(-160, 240)))
    assert windowed[0, 0, 0] == 0 and windowed[3, 3, 3] == 1


def test_an_image_that_is_nearly_all_background_is_refused():
    values = np.zeros((10, 10, 10))
    values[5, 5, 5] = 1
    with pytest.raises(InputError, match=r"moving image.*Crop"):
        scale(_image(values))


def _no_dictionary(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def _not_tensors(path: Path) -> None:
    torch.save({"shift": "three"}, path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "Cannot read the weights .*No such file"),
        (lambda path: path.mkdir(), "Cannot read the weights .*directory"),
        (
            lambda path: path.write_text("no weights", encoding="utf-8"),
            "no weights that PyTorch can read",
        ),
        (lambda path: path.touch(), "no weights that PyTorch can read"),
        (
            lambda path: torch.save({"shift": Path("object")}, path),
            "no weights that PyTorch can read",
        ),
        (
            lambda path: torch.save({"turn": torch.zeros(3)}, path),
            "do not belong to uniGradICON.*shift",
        ),
        (
            lambda path: torch.save({"shift": torch.zeros(4)}, path),
            "do not belong to uniGradICON.*shift",
        ),
        (_no_dictionary, "do not belong to uniGradICON"),
        (_not_tensors, "do not belong to uniGradICON"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_those_that_do(write, says, side, tmp_path):
    path = tmp_path / "weights.trch"
    write(path)
    with pytest.raises(InputError, match=rf"(?s){says}.*Step_2_final\.trch"):
        UniGradICON(path, "cpu")


def test_without_weights_the_option_that_gives_them_is_named(side):
    with pytest.raises(InputError, match=r"nothing is downloaded.*unigradicon_weights='FILE'"):
        UniGradICON()


def test_our_field_warps_as_the_network_s_own_machinery_does(phantoms, tmp_path, monkeypatch):
    """The real network, randomly initialised, on a lattice of 70: both on that lattice."""
    pytest.importorskip("icon_registration.networks", reason="icon_registration is not installed")
    monkeypatch.setattr(baselines, "SIDE", 70)
    network = baselines.build_network()
    for name, parameter in network.named_parameters():
        if "lastConv.weight" in name:  # begins with 0, and nothing would be moved
            nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), tmp_path / "weights.trch")
    assert (
        len(network.state_dict()) == 188
        and sum(p.numel() for p in network.parameters()) == 70_680_916
    )
    method = UniGradICON(tmp_path / "weights.trch", "cpu")
    source = phantoms.fixed.grid
    lattice = Grid((70, 70, 70), source.affine @ np.diag([*(np.array(source.shape) / 70), 1.0]))
    # the same image in both roles, so that the network's images are these very values
    values = phantoms.fixed.values.astype(np.float32)
    stretched = F.interpolate(
        torch.from_numpy(values)[None, None], size=lattice.shape, mode="trilinear"
    )[0, 0]
    image = Volume(stretched.numpy(), lattice, "fixed")
    voxels = method._deform(image.values, image.values[::-1].copy(), lattice)
    field = DisplacementField.from_voxels(
        torch.from_numpy(voxels).permute(3, 0, 1, 2)[None], lattice
    )
    moving = image.with_values(scale(image.with_values(image.values[::-1].copy())))
    ours = field.warp(moving).values
    reversed_axes = [
        torch.from_numpy(v.transpose(2, 1, 0).copy())[None, None]
        for v in (moving.values, scale(image))
    ]
    with torch.no_grad():
        there = method.network(*reversed_axes)(method.network.identity_map)
        theirs = (
            method.network.as_function(reversed_axes[0])(there)[0, 0].numpy().transpose(2, 1, 0)
        )
    assert np.abs(voxels).mean() > 0.3 and voxels.std() > 0.2
    inner = (slice(6, -6),) * 3
    assert (
        np.abs(ours - theirs)[inner].max() < 1e-3 < np.abs(moving.values - theirs)[inner].max() / 50
    )
