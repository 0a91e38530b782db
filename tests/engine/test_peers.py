"""Every method behind one face: what was planted is found, in the fixed world, by whatever finds
it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation import baselines
from napari_shmoareg.evaluation import methods as methods_module
from napari_shmoareg.evaluation.baselines import _run_demons, evaluated_method
from napari_shmoareg.evaluation.methods import (
    METHODS,
    change_contrast,
    check_available,
    load_method,
)
from napari_shmoareg.geometry import Grid, Transform, Volume, VolumePair, warp_volume
from napari_shmoareg.metrics.measure import measure_field, selected
from napari_shmoareg.settings import RegistrationSettings

SHIFT = np.array([3.0, -2.0, 2.5])  # mm RAS


@pytest.fixture
def shifted(phantoms) -> VolumePair:
    """The fixed phantom against itself, moved by SHIFT: every fixed point x lies at x + SHIFT in
    the moving image.
    """
    fixed, labels = phantoms.fixed, phantoms.fixed_labels
    affine = fixed.grid.affine.copy()
    affine[:3, 3] += SHIFT
    grid = Grid(fixed.grid.shape, affine)
    return VolumePair(
        Volume(fixed.values, grid, "moving"),
        fixed,
        Volume(labels.values, grid, "labels", is_labels=True),
        labels,
    )


@pytest.mark.parametrize("name", ["start", "affine", "demons", "syn", "convexadam", "niftyreg"])
def test_a_planted_translation_is_found(name, shifted):
    for program in METHODS[name].programs:
        if which(program) is None:
            pytest.skip(f"{program} is not on the PATH")
    for module in METHODS[name].imports:
        pytest.importorskip(module, reason=f"{METHODS[name].distribution} is not installed")
    displacement = load_method(name).run(shifted)
    points = shifted.fixed.grid.to_world(np.argwhere(shifted.fixed_labels.values == 2))
    found = measure_field(
        displacement=displacement,
        pair=shifted,
        measures=selected(surface=False),
        points=(points, points + SHIFT),
    )["means"]
    if name == "start":
        assert (
            found["landmark_mm"] == pytest.approx(np.linalg.norm(SHIFT), rel=1e-5)
            and found["dice"] < 0.85
        )
    else:
        assert found["landmark_mm"] < 0.6 and found["dice"] > 0.93, found
    assert found["folding_percent"] == 0


def test_demons_alone_find_a_translation_in_voxels_along_the_array_s_axes(phantoms):
    """By whole voxels, another number along each axis, on a grid whose spacing is not 1 or the
    same.
    """
    values = np.pad(phantoms.fixed.values, 4)
    moving = np.roll(values, (2, -1, 1), axis=(0, 1, 2))  # what is at p lies at p + (2, -1, 1)
    voxels = _run_demons(values, moving, phantoms.fixed.grid.crop((0, 0, 0), values.shape))
    inside = np.pad(phantoms.fixed_labels.values, 4) == 2
    assert np.abs(voxels[inside].mean(axis=0) - (2, -1, 1)).max() < 0.4


def test_the_affine_comes_after_the_deformation(pair, monkeypatch):
    """T(x) = A(x + d(x)), with an A that turns and stretches, and a d of one voxel along the first
    axis.
    """
    matrix = np.array(
        [[0.0, -1.1, 0.0, 5.0], [1.0, 0.0, 0.0, -3.0], [0.0, 0.0, 0.9, 2.0], [0.0, 0.0, 0.0, 1.0]]
    )
    monkeypatch.setattr(baselines, "align", lambda pair, mode: SimpleNamespace(matrix=matrix))
    seen = []

    def one_voxel(fixed, moving, grid):
        seen.append(moving)
        return np.broadcast_to(np.float32([1, 0, 0]), (*grid.shape, 3)).copy()

    total = baselines.deform_aligned(pair, one_voxel)
    point, step = (
        pair.fixed.grid.to_world(np.array([10.0, 9.0, 8.0])),
        pair.fixed.grid.affine[:3, 0],
    )
    assert total.vectors[10, 9, 8] == pytest.approx(
        matrix[:3, :3] @ (point + step) + matrix[:3, 3] - point, abs=1e-4
    )
    assert np.array_equal(
        seen[0], warp_volume(pair.moving, pair.fixed.grid, Transform(matrix)).values
    )


@pytest.mark.parametrize(("name", "steps"), [("shmoareg", 0), ("shmoareg+refine", 7)])
def test_our_network_is_registered_as_by_default_but_for_what_was_asked(
    name, steps, pair, monkeypatch
):
    asked = []

    def register(*arguments):
        asked.extend(arguments)
        return SimpleNamespace(
            displacement="a field",
            seconds={"align": 9.0, "network": 2.0, "refine": 3.0},
            alignment=SimpleNamespace(matrix="a matrix"),
            warnings=["a warning"],
        )

    monkeypatch.setattr(baselines, "register", register)
    more = {"size": 24, "device": "cpu", "refine": steps, "similarity": "mind", "contrast": "match"}
    more |= {"affine": "rigid"}
    found = evaluated_method(name, more, "a network")(pair)
    assert found == ("a field", "a matrix", ("a warning",), 5.0)
    # a similarity is refused without steps
    refined = {"refine": 7, "similarity": "mind"} if steps else {}
    own = RegistrationSettings(affine="rigid", size=24, device="cpu", contrast="match", **refined)
    assert asked == [pair, "a network", own]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("syn", r'pip install "shmoareg\[peers\]".*environment.*numpy'),
        ("convexadam", r'convexAdam, which is not installed: pip install "shmoareg\[peers\]"'),
        (
            "unigradicon",
            "icon_registration, which is not installed: pip install icon_registration.*environment",
        ),
    ],
)
def test_a_missing_peer_is_said_with_the_command_that_installs_it(name, says, monkeypatch):
    monkeypatch.setattr(methods_module, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=says):
        check_available(name)


def test_what_a_method_runs_is_imported_when_it_is_loaded(monkeypatch, tmp_path):
    """With a stand-in for the package: its import is not in the seconds of the run."""
    (tmp_path / "convexAdam").mkdir()
    (tmp_path / "convexAdam" / "__init__.py").touch()
    (tmp_path / "convexAdam" / "convex_adam_MIND.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("convexAdam", "convexAdam.convex_adam_MIND"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    load_method("convexadam")
    assert sys.modules["convexAdam.convex_adam_MIND"].__file__ == str(
        tmp_path / "convexAdam" / "convex_adam_MIND.py"
    )


def test_a_method_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(
        InputError,
        match=(
            r"no method 'elastix'.*shmoareg\+refine, syn, greedy, demons, convexadam, unigradicon,"
            r" niftyreg"
        ),
    ):
        check_available("elastix")


def test_a_sheared_grid_is_refused_before_ants_sees_it(pair):
    if find_spec("ants") is None:
        pytest.skip("antspyx is not installed")
    affine = pair.fixed.grid.affine.copy()
    affine[:3, 0] += 0.5 * affine[:3, 1]
    sheared = VolumePair(
        pair.moving, Volume(pair.fixed.values, Grid(pair.fixed.grid.shape, affine), "fixed")
    )
    with pytest.raises(InputError, match="not at right angles"):
        load_method("syn").run(sheared)


def _image(values) -> Volume:
    values = np.asarray(values, dtype=np.int16).reshape(2, 2, -1)
    return Volume(values, Grid(values.shape, np.eye(4)), "image")


def test_an_inverted_contrast_turns_the_content_and_leaves_the_background():
    turned = change_contrast(_image([0, 0, 0, 0, 10, 20, 60, 100]), "invert")
    assert turned.values.ravel().tolist() == [0, 0, 0, 0, 100, 90, 50, 10]
    again = change_contrast(turned, "invert")
    assert again.values.ravel().tolist() == [0, 0, 0, 0, 10, 20, 60, 100]


def test_an_image_without_background_is_inverted_whole():
    values = np.arange(40) + 5
    assert (
        change_contrast(_image(values), "invert").values.ravel().tolist()
        == (49 - values + 0).tolist()
    )


def test_a_gamma_keeps_range_and_order_and_brightens_below_1():
    image = _image([-1000, -1000, -1000, -750, -500, 0, 0, 0])
    root = change_contrast(image, "gamma").values.ravel()
    assert root[[0, 3, 5]].tolist() == pytest.approx([-1000, -500, 0])
    assert np.all(np.diff(root) >= 0)
    assert change_contrast(image, "gamma", 2.0).values.ravel()[4] == pytest.approx(-750)
    assert change_contrast(image, "none") is image


@pytest.mark.parametrize(
    ("change", "gamma", "says"), [("negate", 0.5, "one of none"), ("gamma", 0.0, "positive")]
)
def test_a_change_that_cannot_be_made_is_refused(change, gamma, says):
    with pytest.raises(InputError, match=says):
        change_contrast(_image([0, 1, 2, 3]), change, gamma)
