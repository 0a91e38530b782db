"""Two files in, a registration folder out, and an independent reader that gets the same images from
it.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from napari_shmoareg.io import read_pair, write_image, write_registration
from napari_shmoareg.metrics import dice
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration.register import register


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    """A registration folder made from files, by a network that truly moves things (its weights are
    random).
    """
    place = tmp_path_factory.mktemp("journey")
    for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
        write_image(getattr(phantoms, name), place / f"{name}.nii.gz")
    pair = read_pair(
        *(place / f"{n}.nii.gz" for n in ("moving", "fixed", "moving_labels", "fixed_labels"))
    )
    torch.manual_seed(1)
    network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    for level in network.decoder.levels:
        for conv in (m for m in level.head.modules() if isinstance(m, nn.Conv3d)):
            nn.init.normal_(conv.weight, std=0.03)
    result = register(pair, network, affine="rigid", keep="last")
    write_registration(result, place / "result", weights="random", figures=False)
    return place


@pytest.mark.parametrize("transform", ["displacement.nii.gz", "transform.h5"])
def test_simpleitk_gets_our_images_from_the_written_transform(folder, transform):
    fixed, moving, labels = (
        sitk.ReadImage(str(folder / f"{n}.nii.gz")) for n in ("fixed", "moving", "moving_labels")
    )
    path = str(folder / "result" / transform)
    if transform.endswith(".h5"):
        read = sitk.ReadTransform(path)
    else:
        read = sitk.DisplacementFieldTransform(
            sitk.Cast(sitk.ReadImage(path), sitk.sitkVectorFloat64)
        )
    far = -1e6
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, read, sitk.sitkLinear, far, sitk.sitkFloat64)
    )
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "result" / "warped.nii.gz")))
    seen = theirs > far / 2
    assert seen.mean() > 0.5
    assert np.corrcoef(ours[seen], theirs[seen])[0, 1] > 0.999
    carried = sitk.GetArrayFromImage(
        sitk.Resample(labels, fixed, read, sitk.sitkNearestNeighbor, 0)
    )
    mine = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "result" / "warped_labels.nii.gz")))
    assert (carried == mine).mean() > 0.999
    moved = np.abs(
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "result" / "displacement.nii.gz")))
    ).max()
    assert moved > 2  # mm: the transform did something


def test_everything_stands_on_the_fixed_grid(folder):
    fixed = nib.load(folder / "fixed.nii.gz")
    for name in ("warped", "warped_labels", "jacobian", "displacement"):
        image = nib.load(folder / "result" / f"{name}.nii.gz")
        assert image.shape[:3] == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-4)
    intent, *_ = nib.load(folder / "result" / "displacement.nii.gz").header.get_intent("code")
    assert intent == 1007


def test_the_report_says_what_the_files_say(folder):
    report = json.loads((folder / "result" / "report.json").read_text(encoding="utf-8"))
    warped, fixed = (
        np.asarray(nib.load(p).dataobj)
        for p in (folder / "result" / "warped_labels.nii.gz", folder / "fixed_labels.nii.gz")
    )
    for label, value in dice(warped, fixed).items():
        assert report["dice"]["after"]["per_label"][str(label)] == pytest.approx(value, abs=1e-6)
    jacobian = np.asarray(nib.load(folder / "result" / "jacobian.nii.gz").dataobj)
    assert report["folding_percent"] == pytest.approx(100 * (jacobian <= 0).mean(), abs=1e-3)
    assert report["weights"] == "random"


def test_an_expert_map_stands_where_its_cells_stand(folder):
    """Its corner is the corner of the network grid, whatever the resolution: the same field of
    view, bigger voxels.
    """
    full, half = (nib.load(folder / "result" / "experts" / f"decoder-{n}-x.nii.gz") for n in (1, 2))
    np.testing.assert_allclose(half.affine[:3, :3], 2 * full.affine[:3, :3], rtol=1e-4)
    np.testing.assert_allclose(
        full.affine @ [-0.5, -0.5, -0.5, 1], half.affine @ [-0.5, -0.5, -0.5, 1], atol=1e-3
    )
    assert set(np.unique(np.asarray(full.dataobj))) <= {1, 2, 3}
