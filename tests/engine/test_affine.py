"""Alignment: what is apart comes together, what is together stays."""

from dataclasses import replace

import numpy as np
import pytest

from napari_shmoareg.errors import InputError, NoOverlapError
from napari_shmoareg.geometry import Grid, Transform, Volume, VolumePair, warp_volume
from napari_shmoareg.registration.affine import align

PLANTED = np.array(
    [[0.97, -0.21, 0.04, 8.0], [0.2, 0.96, -0.1, -6.0], [-0.02, 0.1, 1.05, 5.0], [0, 0, 0, 1]]
)


def anatomy(points):
    """A lopsided smooth body of some 70 x 60 x 50 mm, with parts, around (0, 0, 0)."""
    inside = 1 / (
        1 + np.exp((np.linalg.norm(points / np.array([1.0, 0.85, 0.7]), axis=-1) - 35) / 1.5)
    )
    value = 120 * inside
    for centre, radius, bright in (
        ((14, 8, -6), 9, 90),
        ((-12, -10, 4), 12, -60),
        ((3, 16, 9), 6, 120),
    ):
        value = value + bright / (
            1 + np.exp((np.linalg.norm(points - np.array(centre), axis=-1) - radius) / 1.2)
        )
    return value


def voxels(grid):
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def fixed_image():
    affine = np.diag([2.6, 2.4, 3.0, 1.0])
    affine[:3, 3] = (-52, -48, -45)
    grid = Grid((41, 41, 31), affine)
    return Volume(anatomy(voxels(grid)).astype(np.float32), grid, "fixed")


def moving_image(matrix, affine, shape=(44, 46, 40), remap=None):
    """The same body, seen through an affine T (fixed to moving), on a grid of any header."""
    grid = Grid(shape, affine)
    there = np.linalg.inv(matrix)
    values = anatomy(voxels(grid) @ there[:3, :3].T + there[:3, 3])
    return Volume(values.astype(np.float32) if remap is None else remap(values), grid, "moving")


def header(far=(0, 0, 0)):
    """Sheared, mirrored and turned, with the body in view: what ITK would refuse."""
    affine = np.array(
        [[-2.5, 0.5, 0.1, 0], [0.3, 2.3, 0.4, 0], [0.2, -0.3, 2.7, 0], [0, 0, 0, 1.0]]
    )
    affine[:3, 3] = np.array([8, -6, 5]) + far - affine[:3, :3] @ ((np.array([44, 46, 40]) - 1) / 2)
    return affine


def error(matrix, truth):
    """Mean distance in mm over the fixed image's body."""
    points = voxels(fixed_image().grid)[fixed_image().values > 60]
    return Transform(matrix).distance(points, Transform(truth).map_points(points)).mean()


def test_a_planted_affine_is_found_through_a_sheared_and_mirrored_header():
    pair = VolumePair(moving_image(PLANTED, header()), fixed_image())
    told = []
    found = align(pair, "auto", progress=lambda phase, fraction: told.append((phase, fraction)))
    assert error(np.eye(4), PLANTED) > 8
    assert error(found.matrix, PLANTED) < 0.6
    assert found.after.score > found.before.score
    assert "affine stage raised" in found.reason
    phases, fractions = zip(*told, strict=True)
    assert set(phases) == {"align"} and list(fractions) == sorted(fractions)
    assert fractions[-1] == 1 and len(told) > 10


def test_images_whose_frames_are_far_apart_start_from_their_centres():
    far = np.eye(4)
    far[:3, 3] = (400, -300, 900)
    moving = moving_image(far @ PLANTED, header(far[:3, 3]))
    found = align(VolumePair(moving, fixed_image()))
    assert error(found.matrix, far @ PLANTED) < 0.6
    assert found.before.score == 0


@pytest.mark.slow
def test_another_contrast_is_aligned_too():
    moving = moving_image(PLANTED, header(), remap=lambda v: np.abs(v - 130).astype(np.int16) * 7)
    found = align(VolumePair(moving, fixed_image()))
    assert error(found.matrix, PLANTED) < 1.5


def test_what_is_aligned_stays_where_it_is():
    moving = moving_image(np.eye(4), header(far=(-8, 6, -5)))
    found = align(VolumePair(moving, fixed_image()))
    assert error(found.matrix, np.eye(4)) < 0.2


def test_the_rigid_mode_only_turns_and_shifts():
    turn = PLANTED.copy()
    u, _, v = np.linalg.svd(turn[:3, :3])
    turn[:3, :3] = u @ v
    found = align(VolumePair(moving_image(turn, header()), fixed_image()), "rigid")
    np.testing.assert_allclose(found.matrix[:3, :3].T @ found.matrix[:3, :3], np.eye(3), atol=1e-6)
    assert error(found.matrix, turn) < 0.6


def test_a_body_of_a_mouse_is_aligned_like_that_of_a_man():
    small = np.diag([0.1, 0.1, 0.1, 1.0])
    fixed, moving = fixed_image(), moving_image(PLANTED, header())
    pair = VolumePair(
        Volume(moving.values, Grid(moving.grid.shape, small @ moving.grid.affine)),
        Volume(fixed.values, Grid(fixed.grid.shape, small @ fixed.grid.affine)),
    )
    found = np.linalg.inv(small) @ align(pair).matrix @ small
    assert error(found, PLANTED) < 0.6


@pytest.mark.slow
def test_every_run_gives_the_same_matrix():
    pair = VolumePair(moving_image(PLANTED, header()), fixed_image())
    np.testing.assert_array_equal(align(pair).matrix, align(pair).matrix)


def test_none_trusts_the_headers_and_says_when_they_lead_nowhere():
    near = align(VolumePair(moving_image(PLANTED, header()), fixed_image()), "none")
    np.testing.assert_array_equal(near.matrix, np.eye(4))
    far = np.eye(4)
    far[0, 3] = 500
    with pytest.raises(NoOverlapError, match=r"508 mm.*affine='auto'"):
        align(VolumePair(moving_image(far, header(far[:3, 3])), fixed_image()), "none")


def test_what_progress_raises_comes_out():
    class Cancelled(Exception):
        pass

    def cancel(phase, fraction):
        if fraction > 0.2:
            raise Cancelled

    with pytest.raises(Cancelled):
        align(VolumePair(moving_image(PLANTED, header()), fixed_image()), progress=cancel)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 0, 1), (0.6, 0.64, 0.48)])
def test_a_body_upside_down_is_turned_back(axis):
    turn = np.eye(4)
    a = np.array(axis)
    turn[:3, :3] = 2 * np.outer(a, a) - np.eye(3)  # by 180 degrees
    found = align(VolumePair(moving_image(turn, header()), fixed_image()))
    assert error(found.matrix, turn) < 2.5  # the body is nearly round about the oblique axis
    assert "degrees from the header's orientation" in found.reason


def test_a_part_of_the_body_is_found_in_the_whole():
    """The moving field of view holds the upper third only; by their centres the two would be far
    off.
    """
    whole = moving_image(np.eye(4), header(far=(-8, 6, -5)))
    part = whole.grid.crop((4, 4, 26), (36, 38, 14))
    upper = Volume(whole.values[4:40, 4:42, 26:], part, "upper third")
    off = np.eye(4)
    off[:3, 3] = (0, 0, -40)
    moving = Volume(upper.values, Grid(part.shape, off @ part.affine), "upper third")
    found = align(VolumePair(moving, fixed_image()))
    assert error(found.matrix, off) < 3
    assert found.after.coverage > 0.9


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match=r"affine must be 'auto', .*; got 'elastic'"):
        align(VolumePair(fixed_image(), fixed_image()), "elastic")


@pytest.mark.slow
def test_the_35_mm_between_the_frames_of_two_lung_scans_are_recovered(shared_data):
    folder = shared_data / "lung_ct"
    pair = VolumePair(read_mha(folder / "baseline_ct.mha"), read_mha(folder / "followup_ct.mha"))
    landmarks = np.loadtxt(folder / "landmarks_inside_mm.csv", delimiter=",", comments="#")
    baseline, followup = landmarks[:, :3] * [-1, -1, 1], landmarks[:, 3:] * [-1, -1, 1]
    assert Transform(np.eye(4)).distance(followup, baseline).mean() > 35
    assert Transform(align(pair).matrix).distance(followup, baseline).mean() < 4.5
    assert Transform(align(pair.swapped).matrix).distance(baseline, followup).mean() < 4.5


@pytest.mark.slow
def test_brains_that_are_aligned_do_not_get_worse(shared_data):
    one, other = "07", "08"
    pair = VolumePair(
        *(read_nifti(shared_data / "brain" / f"sub-{s}_brain.nii.gz") for s in (one, other))
    )
    moving, fixed = (
        read_nifti(shared_data / "brain" / f"sub-{s}_seg.nii.gz", labels=True) for s in (one, other)
    )
    matrix = align(pair).matrix
    before, after = (
        mean_dice(warp_volume(moving, fixed.grid, Transform(m)).values, fixed.values)
        for m in (np.eye(4), matrix)
    )
    assert after >= before - 0.002


def mean_dice(a, b):
    labels = np.intersect1d(a, b)
    return np.mean(
        [
            2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum())
            for v in labels[labels > 0]
        ]
    )


def read_mha(path):
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return Volume(values, Grid(values.shape, np.diag([-1, -1, 1, 1]) @ affine), path.stem)


def read_nifti(path, labels=False):
    import nibabel as nib

    image = nib.load(path)
    return Volume(
        np.asanyarray(image.dataobj), Grid(image.shape, image.affine), path.name, is_labels=labels
    )


@pytest.mark.parametrize("shape", [(3, 3, 3), (5, 5, 5), (40, 40, 2), (2, 30, 9)])
def test_a_few_voxels_are_no_reason_for_the_words_of_another_library(shape):
    values = np.random.default_rng(0).random((44, 44, 44)).astype(np.float32)
    start = [slice(2, 2 + n) for n in shape]
    moved = [slice(1, 1 + shape[0]), *start[1:]]
    grid = Grid(shape, np.diag([2.0, 2.0, 6.0, 1.0]))
    found = align(
        VolumePair(Volume(values[tuple(moved)], grid), Volume(values[tuple(start)], grid))
    )
    assert np.isfinite(found.matrix).all()
    assert (
        "0x" not in found.reason
        and "itk" not in found.reason.lower()
        and "refusing" not in found.reason.lower()
    )


def far_apart(stretch=(1.0, 1.0, 1.0)):
    """The body of the fixed image, filed a metre away; and where to start: 6 mm beside it."""
    away = np.diag([*stretch, 1.0])
    away[:3, 3] = (400, -300, 900)
    pair = VolumePair(moving_image(away @ PLANTED, header(away[:3, 3])), fixed_image())
    beside = away.copy()
    beside[:3, 3] += (6, 0, 0)
    return pair, beside, away @ PLANTED


def test_an_initial_affine_is_where_the_alignment_starts_and_none_keeps_it():
    pair, initial, truth = far_apart()
    kept = align(pair, "none", initial=initial)
    np.testing.assert_array_equal(kept.matrix, initial)
    assert "initial transform was kept as it is" in kept.reason
    found = align(pair, initial=initial)
    assert error(initial, truth) > 8 and error(found.matrix, truth) < 0.6
    assert found.reason.startswith("Started from the initial transform (agreement")
    np.testing.assert_array_equal(found.initial, initial)
    assert found.before == kept.before and found.before.score > 0.1


def test_a_rigid_alignment_turns_what_the_initial_affine_placed_with_its_stretch():
    pair, initial, _ = far_apart((1.02, 0.98, 1.05))
    found = np.linalg.inv(initial) @ align(pair, "rigid", initial=initial).matrix
    np.testing.assert_allclose(found[:3, :3].T @ found[:3, :3], np.eye(3), atol=1e-6)
    assert not np.allclose(found, np.eye(4))


def test_an_initial_affine_of_the_other_direction_or_a_singular_one_is_refused_in_words():
    pair, initial, truth = far_apart()
    with pytest.raises(NoOverlapError, match="has to map points of the fixed image to the moving"):
        align(pair, "none", initial=np.linalg.inv(initial))
    found = align(pair, initial=np.linalg.inv(initial))
    assert "by the initial transform" in found.reason and error(found.matrix, truth) < 0.6
    with pytest.raises(InputError, match="singular"):
        align(pair, initial=np.diag([1.0, 1.0, 0.0, 1.0]))


def test_a_mask_keeps_what_lies_outside_of_it_from_the_alignment():
    """A bright table below the fixed body, which the moving image shows elsewhere."""
    fixed, moving = fixed_image(), moving_image(PLANTED, header())
    points = voxels(fixed.grid)
    table = points[..., 1] < -34
    seen = voxels(moving.grid)
    body = np.linalg.norm(points / np.array([1.0, 0.85, 0.7]), axis=-1) < 44
    values = np.where(table, 400, fixed.values).astype(np.float32)
    other = np.where(seen[..., 1] > 24, 400, moving.values).astype(np.float32)
    pair = VolumePair(moving.with_values(other), fixed.with_values(values))
    mask = Volume((body & ~table).astype(np.uint8), fixed.grid, "body", is_labels=True)
    free = align(pair)
    masked = align(replace(pair, fixed_mask=mask))
    assert error(masked.matrix, PLANTED) < 1.5 < error(free.matrix, PLANTED)
    whole = Volume(np.ones(fixed.grid.shape, np.uint8), fixed.grid, "all", is_labels=True)
    np.testing.assert_allclose(
        align(replace(pair, fixed_mask=whole)).matrix, free.matrix, atol=1e-6
    )
