"""register(): the result stands on the fixed image's own grid, in millimetres."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.geometry import (
    DisplacementField,
    Grid,
    Transform,
    Volume,
    VolumePair,
    inside,
    warp_volume,
)
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io import load_network
from napari_shmoareg.io.report import build_report
from napari_shmoareg.metrics.measure import measure
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.register import Registration, register
from napari_shmoareg.registration.replay import Replay
from napari_shmoareg.registration.similarity import compare_images

PHASES = ["align", "conform", "network", "measure", "warp"]


class Shifting(nn.Module):
    """Stands in for the network: moves everything by the same number of voxels."""

    untrained = False

    def __init__(self, voxels=(0.0, 0.0, 0.0), fails=None):
        super().__init__()
        self.config = SHMoARegConfig.preset("tiny", size=24)
        self.voxels, self.fails, self.asked = voxels, fails, []

    def forward(self, moving, fixed, *, diffeomorphic=None):
        if self.fails:
            raise self.fails
        self.asked.append(
            (
                diffeomorphic,
                self.training,
                torch.is_inference_mode_enabled(),
                tuple(fixed.shape[2:]),
            )
        )
        shift = torch.tensor(self.voxels).reshape(1, 3, 1, 1, 1)
        return NetworkOutput(shift.expand(1, 3, *fixed.shape[2:]).clone(), RoutingTrace(()))


def test_the_result_stands_on_the_fixed_grid_and_its_parts_say_the_same(pair, tiny_network):
    result = register(pair, tiny_network, affine="none")
    grid = pair.fixed.grid
    assert isinstance(result, Registration)
    for volume in (result.warped, result.warped_labels, result.jacobian, result.displacement):
        assert volume.grid.same_space(grid)
    again = warp_volume(pair.moving, grid, result.transform)
    np.testing.assert_allclose(result.warped.values, again.values, atol=1e-3)  # of about 220
    assert result.warped.values.dtype == np.float32
    assert result.warped_labels.values.dtype == pair.moving_labels.values.dtype
    points = grid.to_world([[0, 0, 0], [20, 9, 4]])
    there = points + result.displacement.vectors[[0, 20], [0, 9], [0, 4]]
    np.testing.assert_allclose(there, result.transform.map_points(points), atol=1e-3)
    assert max(result.network_grid.shape) <= tiny_network.config.size
    assert len(result.routing) == len(result.routing.detached()) > 0
    assert all(not layer.routing.probabilities.requires_grad for layer in result.routing)


def test_a_network_that_moves_nothing_leaves_the_affine_alone(pair):
    result = register(pair, Shifting(), affine="affine")
    assert not np.allclose(result.alignment.matrix, np.eye(4))
    expected = warp_volume(pair.moving, pair.fixed.grid, Transform(result.alignment.matrix))
    np.testing.assert_allclose(result.warped.values, expected.values, atol=0.05)
    np.testing.assert_allclose(result.jacobian.values, 1, atol=1e-4)
    assert result.folding_percent == 0
    assert result.similarity["after"].ncc == pytest.approx(
        result.similarity["affine"].ncc, abs=1e-3
    )
    assert result.similarity["affine"].ncc > result.similarity["before"].ncc
    assert result.similarity["affine"].mse < result.similarity["before"].mse


def test_without_a_network_the_refinement_deforms_what_the_alignment_left(pair):
    aligned = register(pair, None, affine="rigid", size=24)
    refined = register(pair, None, affine="none", size=24, refine=20, keep="last")
    assert aligned.kept == "affine" and np.allclose(aligned.jacobian.values, 1)
    assert (
        refined.kept == "refined" and "network" not in refined.seconds and len(refined.routing) == 0
    )
    assert refined.similarity["refined"].ncc > refined.similarity["affine"].ncc
    assert refined.settings["network"] == {} and refined.settings["passes"] == []


def test_a_smoother_deformation_is_smoother(pair):
    roughness = []
    for smoothness in ("accurate", "balanced", "smooth"):
        result = register(
            pair, None, affine="none", size=24, refine=20, keep="last", smoothness=smoothness
        )
        roughness.append(float(result.jacobian.values.std()))
    assert roughness == sorted(roughness, reverse=True)
    with pytest.raises(InputError, match="'accurate', 'balanced' or 'smooth'"):
        register(pair, None, smoothness="rough")


def test_the_refinement_ends_when_its_seconds_are_over(pair):
    hasty = register(pair, None, affine="none", size=24, refine=50, refine_seconds=0.0)
    assert re.search(r"^1 steps", hasty.choices["refinement"])


def test_voxels_of_the_network_become_millimetres_along_its_axes(pair):
    result = register(pair, Shifting((2.0, 0.0, -1.0)), affine="none", keep="last")
    grid = result.network_grid
    expected = grid.affine[:3, :3] @ np.array([2.0, 0.0, -1.0])
    np.testing.assert_allclose(result.displacement.vectors[10, 10, 10], expected, atol=1e-3)


def test_the_mirror_image_of_a_fixed_scan_s_storage_changes_nothing_in_the_world(
    pair, tiny_network
):
    fixed = pair.fixed
    turned = Volume(fixed.values[::-1].transpose(2, 0, 1), other_storage(fixed.grid))
    one = register(pair, tiny_network, affine="none")
    two = register(VolumePair(pair.moving, turned), tiny_network, affine="none")
    assert one.network_grid.same_space(two.network_grid)
    back = two.warped.values.transpose(1, 2, 0)[::-1]
    np.testing.assert_allclose(back, one.warped.values, atol=0.05)


def other_storage(grid):
    """The grid of values[::-1].transpose(2, 0, 1)."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = 1, -1, 1, 1
    matrix[0, 3] = grid.shape[0] - 1
    return Grid((grid.shape[2], grid.shape[0], grid.shape[1]), grid.affine @ matrix)


def test_the_network_runs_in_evaluation_and_inference_mode_and_gets_its_mode_back(pair):
    network = Shifting()
    network.train()
    result = register(pair, network, affine="none", size=16, diffeomorphic=True)
    assert network.asked == [(True, False, True, result.network_grid.shape)]
    assert network.training
    assert max(result.network_grid.shape) == 16
    asked = {"affine": "none", "size": 16, "diffeomorphic": True, "device": "cpu", "passes": [1.0]}
    asked |= {
        "refine": 0,
        "similarity": "auto",
        "contrast": "auto",
        "keep": "best",
        "fill": "auto",
        "untrained": False,
    }
    asked |= {"smoothness": "accurate"}
    assert result.settings == asked | {"network": network.config.to_dict()}


def test_without_a_word_size_and_variant_are_those_of_the_weights(pair):
    result = register(pair, Shifting(), affine="none", device="cpu")
    assert result.settings["size"] == 24
    assert result.settings["diffeomorphic"] is False


def test_progress_names_the_phases_in_order_and_times_are_kept(pair):
    told = []
    result = register(
        pair,
        Shifting(),
        affine="rigid",
        progress=lambda phase, fraction: told.append((phase, fraction)),
    )
    assert list(dict.fromkeys(phase for phase, _ in told)) == PHASES
    assert all((phase, 0.0) in told and (phase, 1.0) in told for phase in PHASES)
    assert list(result.seconds) == PHASES


def test_what_progress_raises_stops_the_work(pair):
    class Cancelled(Exception):
        pass

    def cancel(phase, fraction):
        if phase == "warp":
            raise Cancelled

    with pytest.raises(Cancelled):
        register(pair, Shifting(), affine="none", progress=cancel)


def test_images_that_do_not_meet_by_their_headers_have_no_similarity_before(pair):
    far = np.eye(4)
    far[:3, 3] = (0, 600, 0)
    moving = Volume(pair.moving.values, Grid(pair.moving.grid.shape, far @ pair.moving.grid.affine))
    result = register(VolumePair(moving, pair.fixed), Shifting(), affine="rigid")
    assert result.similarity["before"] is None
    assert result.similarity["after"].ncc > 0.8


def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(pair, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"cuda was requested.*device='cpu'"):
        register(pair, Shifting(), device="cuda")
    with pytest.raises(InputError, match="device must be 'auto', 'cpu' or 'cuda'; got 'tpu'"):
        register(pair, Shifting(), device="tpu")


def test_bad_options_are_refused_before_any_work(pair):
    told = []
    for options in ({"size": 3}, {"size": "huge"}, {"device": "gpu"}, {"keep": "all"}):
        with pytest.raises(InputError):
            register(pair, Shifting(), progress=lambda *args: told.append(args), **options)
    assert not told


def test_memory_that_runs_out_in_the_network_is_an_error_of_ours(pair):
    from napari_shmoareg.errors import TooLargeError

    with pytest.raises(TooLargeError, match="Give a size"):
        register(pair, Shifting(fails=torch.OutOfMemoryError("CUDA out of memory")), affine="none")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        register(pair, Shifting(fails=RuntimeError("mat1 and mat2 shapes")), affine="none")


def test_a_deformation_that_harms_is_not_kept_and_said(pair):
    harm = Shifting(voxels=(0.0, 6.0, 0.0))
    result = register(pair, harm, affine="none")
    assert result.kept == "before" and not result.displacement.vectors.any()
    (warning,) = result.warnings
    assert "left as in their headers" in warning
    asked = register(pair, harm, affine="none", keep="last")
    assert asked.kept == "network" and asked.displacement.vectors.any()
    assert any(
        "less similar" in warning and "keep the best stage" in warning for warning in asked.warnings
    )
    assert asked.similarity["after"].score < asked.similarity["before"].score


@pytest.mark.parametrize("refine", [0, 10])
def test_an_image_onto_itself_stays_where_it_is(pair, lively_network, refine):
    same = VolumePair(pair.fixed, pair.fixed)
    result = register(same, lively_network(0.05), refine=refine)
    assert result.kept == "before"
    assert np.abs(result.displacement.vectors).max() < 0.1 * min(pair.fixed.grid.spacing)
    np.testing.assert_allclose(result.warped.values, pair.fixed.values, atol=1e-3)


def test_an_image_on_another_grid_in_the_same_place_stays_where_it_is(pair, lively_network):
    other = resample(pair.fixed, pair.fixed.grid.resampled((2.6, 3.3, 2.2)))
    result = register(VolumePair(other, pair.fixed), lively_network(0.05), refine=10)
    assert np.abs(result.displacement.vectors).max() < 0.1 * min(pair.fixed.grid.spacing)


def test_a_result_without_trouble_has_no_warning(pair):
    assert register(pair, Shifting(voxels=(0.0, 0.0, 0.0)), affine="none").warnings == []


@pytest.mark.slow
def test_refinement_mends_what_the_network_did(pair):
    plain, refined = (
        register(pair, Shifting((1.0, 0.0, 0.0)), affine="affine", refine=steps)
        for steps in (0, 30)
    )
    assert (
        refined.kept == "refined"
        and refined.similarity["after"].score > plain.similarity["after"].score + 0.01
    )
    assert list(refined.seconds) == ["align", "conform", "network", "refine", "measure", "warp"]
    assert set(refined.choices) == {"affine", "contrast", "similarity", "refinement", "kept"}
    assert "steps, coarse to fine" in refined.choices["refinement"]


def test_an_inverted_moving_image_is_registered_as_the_plain_one(pair, lively_network):
    values = pair.moving.values.astype(np.float32)
    turned = Volume(
        np.where(values > 0, values.max() + values[values > 0].min() - values, 0), pair.moving.grid
    )
    network = lively_network(0.03)
    run = {"affine": "none", "keep": "last"}
    results = [register(p, network, **run) for p in (pair, VolumePair(turned, pair.fixed))]
    assert "matched" in results[1].choices["contrast"] and "kept" in results[0].choices["contrast"]
    kept = register(VolumePair(turned, pair.fixed), network, contrast="keep", **run)
    fields = [r.displacement.vectors for r in (*results, kept)]
    assert np.abs(fields[1] - fields[0]).mean() < np.abs(fields[2] - fields[0]).mean()


def test_weights_that_were_never_trained_are_told(pair, tiny_network):
    fresh = SHMoAReg(SHMoARegConfig.preset("tiny"))
    (said,) = register(pair, fresh, affine="none", size=20).warnings
    assert "untrained" in said
    assert not any(
        "untrained" in warning
        for warning in register(pair, tiny_network, affine="none", size=20).warnings
    )
    assert not load_network("small").untrained


def placement():
    """Where a moving image was dragged and turned to: its world now from that of its file."""
    c, s = np.cos(0.5), np.sin(0.5)
    return np.array([[c, -s, 0, 31.0], [s, c, 0, -12.0], [0, 0, 1, 60.0], [0, 0, 0, 1]])


def filed_elsewhere(pair, where):
    """The pair, with the moving image filed so that `where` brings it back to where it was."""
    there = np.linalg.inv(where)
    moved = {
        role: replace(volume, grid=Grid(volume.grid.shape, there @ volume.grid.affine))
        for role, volume in (("moving", pair.moving), ("moving_labels", pair.moving_labels))
    }
    return replace(pair, **moved)


@pytest.mark.parametrize("affine", ["none", "rigid"])
def test_an_initial_affine_gives_the_registration_of_the_placed_image_in_the_files_own_world(
    pair, affine
):
    where = placement()
    away = filed_elsewhere(pair, where)
    options = {"affine": affine, "size": 24, "refine": 10, "keep": "last"}
    initial = np.linalg.inv(where)  # fixed to moving: the placed world is the fixed one
    found = register(away, None, initial=initial, **options)
    assert found.pair is away and found.kept == "refined"
    assert found.similarity["before"].coverage == 0  # by the headers they are apart
    np.testing.assert_array_equal(found.alignment.initial, initial)
    np.testing.assert_array_equal(found.transform.affine, found.alignment.matrix)
    points = pair.fixed.grid.to_world([[5, 5, 5], [20, 9, 4], [30, 20, 15]])
    if affine == "none":
        placed = register(pair, None, **options)
        expected = np.einsum("ij,nj->ni", initial[:3, :3], placed.transform.map_points(points))
        np.testing.assert_allclose(
            found.transform.map_points(points), expected + initial[:3, 3], atol=1e-3
        )
        np.testing.assert_allclose(found.warped.values, placed.warped.values, atol=0.5)  # of 220
        assert (found.warped_labels.values == placed.warped_labels.values).mean() > 0.999
    back = found.transform.inverse_points(found.transform.map_points(points))
    np.testing.assert_allclose(back, points, atol=0.05)


def test_the_placement_is_the_result_even_where_the_headers_agree_better(pair):
    same = VolumePair(pair.fixed, pair.fixed)
    shift = np.eye(4)
    shift[:3, 3] = (6, 0, 0)
    assert register(same, None, affine="none", size=24).kept == "before"
    found = register(same, None, affine="none", size=24, initial=shift)
    assert found.kept == "affine"
    np.testing.assert_allclose(found.displacement.vectors[10, 10, 10], (6, 0, 0), atol=1e-5)


def test_an_initial_transform_is_read_as_itk_applies_it(pair, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    from napari_shmoareg.io import read_image, read_transform, write_image, write_registration

    away = filed_elsewhere(pair, placement())
    itk = sitk.Euler3DTransform()  # LPS: fixed to moving, about a centre
    itk.SetCenter((3.0, 4.0, -5.0))
    itk.SetRotation(0.02, -0.03, -0.45)
    itk.SetTranslation((20.0, 31.0, -58.0))
    for name in ("moving", "fixed"):
        write_image(getattr(away, name), tmp_path / f"{name}.nii")
    for ending in ("txt", "mat"):
        sitk.WriteTransform(itk, str(tmp_path / f"start.{ending}"))
        found = register(
            away,
            None,
            affine="none",
            size=24,
            initial=read_transform(tmp_path / f"start.{ending}"),
        )
        images = [sitk.ReadImage(str(tmp_path / f"{name}.nii")) for name in ("fixed", "moving")]
        theirs = sitk.Resample(
            sitk.Cast(images[1], sitk.sitkFloat32), images[0], itk, sitk.sitkLinear, -999.0
        )
        sitk.WriteImage(theirs, str(tmp_path / "theirs.nii"))
        theirs = read_image(tmp_path / "theirs.nii").values
        shown = theirs != -999
        assert 0.3 < shown.mean() < 1
        np.testing.assert_allclose(found.warped.values[shown], theirs[shown], atol=0.05)
    write_registration(found, tmp_path / "out", weights="none", figures=False)
    written = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    centre = tuple(found.pair.fixed.grid.centre * (-1, -1, 1))
    np.testing.assert_allclose(
        written.TransformPoint(centre), itk.TransformPoint(centre), atol=1e-3
    )
    from napari_shmoareg.io.registration_folder import read_registration

    again = read_registration(tmp_path / "out")
    np.testing.assert_allclose(again.alignment.initial, found.alignment.initial)
    np.testing.assert_array_equal(again.report["affine"]["initial"], found.alignment.initial)


def bend(pair):
    """A smooth field of some mm, that of the phantoms roughly: an initial deformation."""
    grid = pair.fixed.grid.coarsen(2)
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return Transform(np.eye(4), DisplacementField(3 * np.sin(points / 25), grid))


def test_an_initial_deformation_is_kept_and_composed_with_what_follows(pair):
    start = bend(pair)
    points = pair.fixed.grid.to_world([[8, 8, 8], [20, 9, 10], [28, 20, 15]])
    kept = register(pair, None, size=24, keep="last", initial=start)
    assert kept.kept == "initial" and "initial transform was kept" in kept.choices["affine"]
    assert kept.transform.distance(points, start.map_points(points)).max() < 0.1
    moved = register(pair, Shifting((2.0, 0.0, -1.0)), keep="last", initial=start)
    shift = moved.network_grid.affine[:3, :3] @ np.array([2.0, 0.0, -1.0])
    assert moved.transform.distance(points, start.map_points(points + shift)).max() < 0.1
    again = warp_volume(pair.moving, pair.fixed.grid, moved.transform)
    np.testing.assert_allclose(moved.warped.values, again.values, atol=1e-3)
    refined = register(pair, None, size=24, refine=15, keep="last", initial=start)
    assert refined.choices["refinement"].endswith("from the initial deformation")
    assert refined.similarity["refined"].score > refined.similarity["initial"].score
    with pytest.raises(InputError, match="'auto' or 'none' with an initial deformation"):
        register(pair, None, size=24, affine="rigid", initial=start)


def test_a_registration_from_an_initial_deformation_is_not_replayed_without_it(pair, tiny_network):
    found = register(pair, tiny_network, size=24, initial=bend(pair))
    with pytest.raises(InputError, match="initial deformation, which cannot be replayed"):
        Replay.of(pair, tiny_network, affine=found.affine, settings=found.settings)


def masked(pair, part=slice(None, 18)):
    """The pair with a mask of a part of the fixed image along its first axis."""
    values = np.zeros(pair.fixed.grid.shape, np.uint8)
    values[part] = 3
    return replace(pair, fixed_mask=Volume(values, pair.fixed.grid, "half", is_labels=True))


def test_the_similarity_is_that_within_the_mask_and_the_report_says_so(pair):
    half = masked(pair)
    found = register(half, None, affine="none", size=24)
    warped = warp_volume(pair.moving, pair.fixed.grid, Transform(np.eye(4))).values
    free = register(pair, None, affine="none", size=24)
    a, b = (
        Intensity.of(image).scale(values)[:18]
        for image, values in ((pair.moving, warped), (pair.fixed, pair.fixed.values))
    )
    points = pair.fixed.grid.to_world(
        np.stack(np.meshgrid(*map(np.arange, (18, 29, 23)), indexing="ij"), -1)
    )
    seen = inside(pair.moving.grid, points)
    expected = float(((a[seen] - b[seen]).astype(float) ** 2).mean())
    assert found.similarity["before"].mse == pytest.approx(expected, rel=1e-4)
    assert found.similarity["before"].overlap == pytest.approx(seen.mean())
    assert found.similarity["before"] != free.similarity["before"]
    assert "within 'half' only, 48.6 % of the fixed image" in found.choices["mask"]
    assert "mask" not in free.choices
    for result, within in ((found, "mask"), (free, "overlap")):
        report = build_report(
            result,
            measure(result),
            ExpertLoad.of(result.routing, result.network_grid.shape),
            weights="none",
        )
        assert report["similarity_within"] == within
        assert (report["pair"]["fixed_mask"] is None) == (within == "overlap")


def test_a_mask_does_not_change_what_the_network_sees_but_the_refinement(pair, tiny_network):
    options = {"affine": "none", "size": 24, "keep": "last"}
    half = masked(pair)
    for refine, same in ((0, True), (15, False)):
        free, found = (
            register(each, tiny_network, refine=refine, **options) for each in (pair, half)
        )
        assert np.array_equal(free.displacement.vectors, found.displacement.vectors) == same
    assert "mask" in found.choices and found.displacement.vectors.shape[:3] == pair.fixed.grid.shape


def test_a_mask_that_compares_nothing_is_refused(pair):
    with pytest.raises(InputError, match="The mask 'half' is empty"):
        masked(pair, slice(0, 0))
    speck = np.zeros(pair.fixed.grid.shape, np.uint8)
    speck[0, 0, 0] = 1
    tiny = replace(pair, fixed_mask=Volume(speck, pair.fixed.grid, "speck", is_labels=True))
    with pytest.raises(InputError, match="covers no voxel of the grid"):
        register(tiny, None, affine="none", size=16, refine=5)
    with pytest.raises(InputError, match="The fixed mask 'moving_labels' is on another grid"):
        replace(pair, fixed_mask=pair.moving_labels)


def test_a_mask_of_one_slice_is_met_by_every_sample(pair, monkeypatch):
    from napari_shmoareg.registration import similarity
    from napari_shmoareg.registration.agreement import CoarseImage

    monkeypatch.setattr(similarity, "POINTS", 200)
    for at in range(6, 11):
        thin = masked(pair, slice(at, at + 1))
        assert compare_images(thin, Transform(np.eye(4))) is not None
    assert CoarseImage.of(pair.fixed, 9.0, masked(pair, slice(7, 8)).fixed_mask).in_view.any()
