"""Contrasts are told apart, matched where that helps, and left alone where they agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.registration.contrast import match_contrast, relate


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Smooth tissue in [0.2, 1] within a ball, 0 around it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 8, 8, 8, generator=generator)
    tissue = 0.2 + 0.8 * F.interpolate(
        coarse, size=(40, 36, 44), mode="trilinear", align_corners=True
    )
    axes = [torch.linspace(-1, 1, n) for n in tissue.shape[2:]]
    radius = axes[0].view(-1, 1, 1) ** 2 + axes[1].view(1, -1, 1) ** 2 + axes[2].view(1, 1, -1) ** 2
    return torch.where(radius < 0.8, tissue, 0.0)


def inverted(image: Tensor) -> Tensor:
    return torch.where(image > 0, 1.2 - image, 0.0)


def correlation(a: Tensor, b: Tensor) -> float:
    inside = (a > 0.02) & (b > 0.02)
    return float(torch.corrcoef(torch.stack([a[inside], b[inside]]))[0, 1])


def shifted(image: Tensor) -> Tensor:
    """As an affine leaves it: a voxel off."""
    return torch.roll(image, 1, 3)


def test_like_contrasts_are_left_alone(image):
    moving = shifted(image)
    result = match_contrast(moving, image)
    assert result.moving is moving and not result.changed
    assert "kept, as they are alike" in result.reason
    assert relate(moving, image).correlation == pytest.approx(correlation(moving, image), abs=1e-5)


@pytest.mark.parametrize("bend", [inverted, lambda a: inverted(a) ** 3])
def test_inverted_and_bent_contrasts_are_matched(image, bend):
    moving = bend(image)
    result = match_contrast(moving, image)
    assert result.changed and "matched" in result.reason
    assert correlation(result.moving, image) > correlation(moving, image) + 0.2
    assert result.moving.min() >= 0 and result.moving.max() <= 1


def test_an_inverted_contrast_comes_back_as_it_was(image):
    result = match_contrast(inverted(image), image)
    assert correlation(result.moving, image) > 0.98
    assert float((result.moving - image).abs().mean()) < 0.05


def test_a_background_that_became_bright_becomes_dark_again(image):
    """A photographic negative: air is white, and the brightest tissue is black."""
    result = match_contrast(1 - image, image, backgrounds=(1.0, 0.0))
    assert float(result.moving[image == 0].max()) == 0
    brightest = image > 0.9
    assert float((result.moving - image)[brightest].abs().mean()) < 0.05


def test_it_can_be_overruled(image):
    moving = inverted(image)
    assert not match_contrast(moving, image, "keep").changed
    assert match_contrast(image, image, "match").changed
    with pytest.raises(InputError, match="'auto', 'keep' or 'match'"):
        match_contrast(moving, image, "invert")


def test_unrelated_images_are_said_to_be_and_kept(image):
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(4))
    full = torch.rand(image.shape, generator=torch.Generator().manual_seed(5))
    result = match_contrast(noise, full)
    assert (
        not result.changed
        and relate(noise, full).unrelated
        and "too little in common" in result.reason
    )


def test_an_empty_image_is_no_error(image):
    result = match_contrast(torch.zeros_like(image), image)
    assert not result.changed and "nothing" in result.reason
