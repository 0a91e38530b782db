"""What the tests share: a pair that is never a cube, a small seeded network, real data if there is
any.
"""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.model import RoutingTrace
from napari_shmoareg.registration.register import Registration

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    """Give the tests a screen of their own where there is none: windows are drawn for real.

    Ctrl-C reaches the processes that tests start, also where a shell runs pytest in the background
    and ignores SIGINT for it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    if shutil.which("Xvfb") is None:
        pytest.exit(
            "The windows of these tests need Xvfb. On Debian or Ubuntu: sudo apt-get install xvfb",
            1,
        )
    reader, writer = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(writer),
        "-screen",
        "0",
        "1600x1100x24",
        "-nolisten",
        "tcp",
    ]
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    screen = subprocess.Popen(command, pass_fds=[writer], preexec_fn=_end_with_parent, **silent)
    os.close(writer)
    with os.fdopen(reader) as told:
        number = told.readline().strip()
    if not number:
        pytest.exit(f"Xvfb did not start (exit {screen.wait()}): {' '.join(command)}", 1)
    os.environ["DISPLAY"] = f":{number}"
    config.add_cleanup(screen.terminate)


def _end_with_parent() -> None:
    """Ask the kernel to end this process with its parent, even if that is killed
    (PR_SET_PDEATHSIG).
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    """As many threads as a small machine has, so that every machine computes alike."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def put_on_path(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Put a program of a name and a Python text before all others on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(name: str, code: str) -> None:
        (folder / name).write_text(f"#!{sys.executable}\n{code}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return put


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes beside the repository; a test that needs it is skipped where it is
    absent.
    """
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real volumes are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def phantoms() -> VolumePair:
    """The `pair`, made once; not to be changed."""
    return _phantoms()


@pytest.fixture
def pair(phantoms) -> VolumePair:
    """A copy of the phantom pair, made anew for each test."""
    return copy.deepcopy(phantoms)


def _phantoms() -> VolumePair:
    """Moving and fixed phantoms with labels on two oblique grids; fixed is 37x29x23 at 3x3x2 mm.

    The fixed image shows an anatomy f; the moving one shows f(y - s(y)) with a smooth s of up to
    about 5 mm, on a grid of another size, spacing and orientation (its first axis runs to the
    left)."""
    fixed_grid = _oblique_grid(
        (37, 29, 23), (3.0, 3.0, 2.0), angles=(0.20, -0.12, 0.15), middle=(4.0, -7.0, 11.0)
    )
    moving_grid = _oblique_grid(
        (34, 41, 25), (-3.2, 2.5, 2.2), angles=(-0.10, 0.08, -0.22), middle=(6.0, -5.0, 10.0)
    )
    fixed_points, moving_points = (_points(grid) for grid in (fixed_grid, moving_grid))
    moving_points = moving_points - _shift(moving_points)
    return VolumePair(
        Volume(_anatomy(moving_points), moving_grid, "moving"),
        Volume(_anatomy(fixed_points), fixed_grid, "fixed"),
        Volume(_regions(moving_points), moving_grid, "moving_labels", is_labels=True),
        Volume(_regions(fixed_points), fixed_grid, "fixed_labels", is_labels=True),
    )


@pytest.fixture(scope="session")
def lively_network() -> Callable[[float], nn.Module]:
    """Make an untrained network of the smallest preset with random heads of a given spread, as
    those start at zero.

    With 0.03 it moves things by some millimetres, with 0.1 it folds.
    """
    from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

    def make(spread: float) -> SHMoAReg:
        torch.manual_seed(0)
        network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
        for level in network.decoder.levels:
            for conv in (m for m in level.head.modules() if isinstance(m, nn.Conv3d)):
                nn.init.normal_(conv.weight, std=spread)
        return network

    return make


@pytest.fixture
def tiny_network(lively_network):
    """A seeded, untrained network of the smallest preset, in evaluation mode, that truly moves
    things.
    """
    return lively_network(0.03)


@pytest.fixture(scope="session")
def registered_phantoms(phantoms, lively_network) -> Registration:
    """The `registration`, made once; not to be changed."""
    from napari_shmoareg.registration.register import register

    options = {"affine": "none", "size": 20, "device": "cpu", "keep": "last"}
    return register(phantoms, lively_network(0.03), **options)


@pytest.fixture
def registration(registered_phantoms) -> Registration:
    """A copy of the registration of the `pair` by the `tiny_network`: headers trusted, on a network
    grid of 20 voxels along its longest axis.
    """
    return copy.deepcopy(registered_phantoms)


@pytest.fixture
def without_gate_values():
    """A registration as a folder gives it back that was written before gate values were kept."""

    def strip(registration: Registration) -> Registration:
        layers = []
        for layer in registration.routing:
            routing = layer.routing._replace(
                probabilities=torch.full_like(layer.routing.probabilities, torch.nan)
            )
            if layer.part == "decoder":
                routing = routing._replace(weights=torch.full_like(routing.weights, torch.nan))
            layers.append(replace(layer, routing=routing))
        return replace(registration, routing=RoutingTrace(tuple(layers)))

    return strip


def _oblique_grid(shape, spacing, angles, middle) -> Grid:
    """A grid turned about x, y and z by `angles` (radians) whose field of view is centred on
    `middle` (mm).
    """
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[a, b, a, b], [a, b, b, a]] = (
            np.cos(angle),
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
        )
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing)
    affine[:3, 3] = np.array(middle) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def _points(grid: Grid) -> np.ndarray:
    return grid.to_world(
        np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    )


def _shift(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([3 * np.sin(y / 20), 2.5 * np.cos(z / 15), 2 * np.sin(x / 25)], -1)


_PARTS = (  # label, brightness, middle and half axes of an ellipsoid in mm
    (1, 100.0, (4.0, -7.0, 11.0), (36.0, 29.0, 17.0)),
    (2, 220.0, (-8.0, -2.0, 12.0), (10.0, 12.0, 8.0)),
    (3, 160.0, (16.0, -12.0, 9.0), (9.0, 8.0, 7.0)),
    (4, 40.0, (5.0, 6.0, 16.0), (7.0, 6.0, 5.0)),
)


def _depth(points: np.ndarray, middle, axes) -> np.ndarray:
    """Positive inside the ellipsoid, 1 in its middle, 0 on its surface."""
    return 1 - np.linalg.norm((points - np.array(middle)) / np.array(axes), axis=-1)


def _anatomy(points: np.ndarray) -> np.ndarray:
    image = np.zeros(points.shape[:-1])
    for _, brightness, middle, axes in _PARTS:
        inside = 1 / (1 + np.exp(-12 * _depth(points, middle, axes)))
        image = image * (1 - inside) + brightness * inside
    return image.astype(np.float32)


def _regions(points: np.ndarray) -> np.ndarray:
    labels = np.zeros(points.shape[:-1], np.int32)
    for label, _, middle, axes in _PARTS:
        labels[_depth(points, middle, axes) > 0] = label
    return labels
