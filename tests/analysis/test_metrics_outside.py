"""The metrics against independent programs, on real labels and on the phantom."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from napari_shmoareg.metrics import (
    avd_th,
    dice,
    hd95_pooled,
    mean,
    surface_distances,
    surfel_distances,
)

SPACING = (1.0, 1.5, 2.5)
MADE = ("phantom", "hippocampus", "hippocampus warped", "brain", "brain warped")


def warped(labels: np.ndarray, seed: int, strength: float = 3.0) -> np.ndarray:
    """A label map moved by a smooth random displacement of up to some voxels, nearest neighbour."""
    rng = np.random.default_rng(seed)
    shift = [ndimage.gaussian_filter(rng.normal(size=labels.shape), 5) for _ in range(3)]
    places = np.indices(labels.shape) + np.array([strength * s / np.abs(s).max() for s in shift])
    return ndimage.map_coordinates(labels, places, order=0, mode="nearest")


def real(path, part=None) -> np.ndarray:
    nibabel = pytest.importorskip("nibabel")
    values = np.asarray(nibabel.load(path).dataobj).astype(np.int16)
    return values if part is None else values[part]


@pytest.fixture(scope="module", params=MADE)
def maps(request, phantoms):
    """Two label maps on one grid of unlike axes: labels cut by the image's border, one label
    missing from each.
    """
    if request.param == "phantom":
        a = phantoms.fixed_labels.values[8:, 2:, :18]
        b = warped(a, 1)
    else:
        folder = request.getfixturevalue("shared_data")
        kind, _, how = request.param.partition(" ")
        if kind == "hippocampus":
            a, b = (
                real(folder / kind / "labels" / f"hippocampus_{n}.nii.gz") for n in ("001", "003")
            )
            i, j, k = np.minimum(a.shape, b.shape)
            a, b = a[15:i, 20:j, :k], b[15:i, 20:j, :k]
        else:
            part = np.s_[60:112, 70:122, 84:130]
            a, b = (real(folder / kind / f"sub-{n}_seg.nii.gz", part) for n in ("05", "06"))
        b = warped(a, 2) if how else b
    a, b = a.copy(), b.copy()
    both = np.intersect1d(a, b)
    if not request.param.startswith("hippocampus"):  # which has two labels only
        a[a == both[-1]] = 0
        b[b == both[-2]] = 0
    edges = np.concatenate(
        [side.ravel() for axis in range(3) for side in (a.take(0, axis), a.take(-1, axis))]
    )
    assert (edges != 0).any(), "no label touches the border"
    return a, b


def test_dice_is_that_of_monai_and_simpleitk(maps):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = maps
    found = dice(a, b)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.astype(np.int32)) for m in maps))
    assert len(found) >= 2
    for label, value in found.items():
        x, y = (torch.from_numpy((m == label)[None, None]) for m in maps)
        assert value == pytest.approx(float(monai.compute_dice(x, y, ignore_empty=False)), abs=1e-6)
        if (a == label).any() and (b == label).any():
            assert value == pytest.approx(overlap.GetDiceCoefficient(label), abs=1e-6)
        else:
            assert value == 0


def test_assd_and_hd95_are_those_of_monai(maps):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = maps
    options = {"include_background": True, "spacing": SPACING}
    for label, found in surface_distances(a, b, SPACING).items():
        if not ((a == label).any() and (b == label).any()):
            assert all(math.isnan(value) for value in found.values())
            continue
        x, y = (torch.from_numpy((m == label)[None, None]) for m in maps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            average = monai.compute_average_surface_distance(x, y, symmetric=True, **options)
            far = monai.compute_hausdorff_distance(x, y, percentile=95, **options)
        assert (found["assd"], found["hd95"]) == pytest.approx(
            (float(average), float(far)), abs=1e-3
        )


def test_assd_and_both_hd95_are_those_of_simpleitk_contours(maps):
    a, b = maps
    for label, found in surface_distances(a, b, SPACING).items():
        if math.isnan(found["assd"]):
            continue
        one, other = (contour(m == label) for m in maps)
        there, back = distances(one, other), distances(other, one)
        pooled = np.concatenate([there, back])
        assert found["assd"] == pytest.approx(pooled.mean(), abs=1e-3)
        assert found["hd95"] == pytest.approx(
            max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-3
        )
        assert found["hd95_pooled"] == pytest.approx(np.percentile(pooled, 95), abs=1e-3)
        assert hd95_pooled(a, b, SPACING, [label])[label] == found["hd95_pooled"]


def test_the_surfel_distances_are_those_of_surface_distance(maps):
    package = pytest.importorskip("surface_distance")
    a, b = maps
    for label, found in surfel_distances(a, b, SPACING).items():
        if not ((a == label).any() and (b == label).any()):
            assert all(math.isnan(value) for value in found.values())
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = package.compute_surface_distances(a == label, b == label, SPACING)
        areas = both["surfel_areas_gt"].sum(), both["surfel_areas_pred"].sum()
        means = package.compute_average_surface_distance(both)
        assert found["assd_surfel"] == pytest.approx(np.average(means, weights=areas), abs=1e-3)
        assert found["hd95_surfel"] == pytest.approx(
            package.compute_robust_hausdorff(both, 95), abs=1e-3
        )


def test_the_distance_over_all_voxels_is_that_of_simpleitk_maps(maps):
    """Its own average is the mean of the two directions, Taha and Hanbury's the larger one."""
    a, b = maps
    measure = sitk.HausdorffDistanceImageFilter()
    for label, value in avd_th(a, b, SPACING).items():
        if not ((a == label).any() and (b == label).any()):
            assert math.isnan(value)
            continue
        one, other = (image(m == label) for m in maps)
        there, back = (distances(p, t, inside=0.0).mean() for p, t in ((one, other), (other, one)))
        assert value == pytest.approx(max(there, back), abs=1e-3)
        measure.Execute(one, other)
        assert measure.GetAverageHausdorffDistance() == pytest.approx((there + back) / 2, abs=1e-3)


def test_the_average_distances_are_numbers_apart(maps):
    """Under one name they would hide a factor of two."""
    a, b = maps
    measured = (
        surface_distances(a, b, SPACING),
        surfel_distances(a, b, SPACING),
        avd_th(a, b, SPACING),
    )
    pooled, surfel = mean_of(measured[0], "assd"), mean_of(measured[1], "assd_surfel")
    everywhere = mean(measured[2])
    assert pooled > 1.15 * surfel > 0 and abs(pooled - everywhere) > 0.02 * pooled


def image(mask: np.ndarray) -> sitk.Image:
    """As ITK reads it: the first axis last, and one voxel of nothing around, so that the border is
    a surface.
    """
    made = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose(2, 1, 0))
    made.SetSpacing(SPACING)
    return made


def contour(mask: np.ndarray) -> sitk.Image:
    return sitk.LabelContour(image(mask), fullyConnected=False)


def distances(points: sitk.Image, targets: sitk.Image, inside: float | None = None) -> np.ndarray:
    """Of each point to the border of the targets, or, if `inside` is given, that where a point is
    in them.
    """
    found = sitk.SignedMaurerDistanceMap(targets, squaredDistance=False, useImageSpacing=True)
    there = sitk.GetArrayFromImage(found)[sitk.GetArrayFromImage(points) > 0].astype(float)
    return np.abs(there) if inside is None else np.where(there < 0, inside, there)


def mean_of(found: dict[int, dict[str, float]], name: str) -> float:
    return mean({label: values[name] for label, values in found.items()})
