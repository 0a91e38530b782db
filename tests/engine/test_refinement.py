"""A refinement finds a deformation that was planted, keeps still where nothing is seen, and stays invertible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.engine.cascade import stretch
from napari_shmoareg.engine.contrast import Relation
from napari_shmoareg.engine.deforming import check_refinement, choose_similarity, refine_on_pair
from napari_shmoareg.engine.local_similarity import LocalCorrelation, SelfSimilarity, self_similarity
from napari_shmoareg.engine.losses import lncc
from napari_shmoareg.engine.refinement import Refinement, refine
from napari_shmoareg.geometry import InputError, field

SHAPE = (36, 40, 32)


def smooth(seed: int, channels: int, knots: int) -> Tensor:
    coarse = torch.randn(1, channels, knots, knots, knots, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=True)


@pytest.fixture(scope="module")
def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Moving, fixed and the displacement between them, up to about 3 voxels."""
    moving = (4 * smooth(0, 1, 9)).sigmoid()
    truth = 1.2 * smooth(1, 3, 4)
    return moving, field.warp(moving, truth, padding="border"), truth


def last(moving: Tensor, fixed: Tensor, start: Tensor, settings: Refinement, diffeomorphic: bool = False) -> Tensor:
    steps = list(refine(moving, fixed, start, settings, diffeomorphic=diffeomorphic))
    assert [step.step for step in steps] == list(range(1, settings.steps + 1))
    return stretch(steps[-1].displacement, fixed.shape[2:])


def error(found: Tensor, truth: Tensor) -> float:
    inner = (slice(None), slice(None), *[slice(4, -4)] * 3)
    return float((found - truth)[inner].norm(dim=1).mean())


@pytest.mark.parametrize("diffeomorphic", [False, True])
@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_a_planted_deformation_is_found_from_nothing(planted, similarity, diffeomorphic):
    moving, fixed, truth = planted
    start = torch.zeros_like(truth)
    settings = Refinement(steps=40, similarity=similarity, smoothness_weight=0.05)
    found = last(moving, fixed, start, settings, diffeomorphic)
    assert error(found, truth) < 0.5 * error(start, truth)


def test_what_the_network_found_is_kept_and_improved(planted):
    moving, fixed, truth = planted
    start = 0.7 * truth
    found = last(moving, fixed, start, Refinement(steps=20, smoothness_weight=0.02))
    assert error(found, truth) < 0.8 * error(start, truth)


def test_the_correct_displacement_is_left_nearly_alone(planted):
    moving, fixed, truth = planted
    found = last(moving, fixed, truth, Refinement(steps=20, smoothness_weight=0.0))
    assert error(found, truth) < 0.2 * error(torch.zeros_like(truth), truth) + 0.02


def test_where_nothing_is_seen_nothing_moves():
    """Adam would drive every voxel alike, however faint its gradient."""
    image = torch.zeros(1, 1, *SHAPE)
    image[..., 4:14, 4:14, 4:14] = smooth(2, 1, 12).sigmoid()[..., 4:14, 4:14, 4:14]
    noise = 1e-3 * torch.randn(2, 1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    moving, fixed = image + noise[0], torch.roll(image, 1, 2) + noise[1]
    found = last(moving, fixed, torch.zeros(1, 3, *SHAPE), Refinement(steps=30, smoothness_weight=0.0))
    assert found[..., 6:12, 6:12, 6:12].norm(dim=1).mean() > 0.5
    assert found[..., 24:, 24:, 24:].norm(dim=1).max() < 0.3


def test_an_invertible_start_stays_invertible(planted):
    moving = planted[0]
    start = field.integrate(1.5 * smooth(3, 3, 6))
    assert float(field.jacobian_determinant(start).min()) > 0
    wild = Refinement(steps=30, smoothness_weight=0.0, rate=1.0)
    unlike = smooth(5, 1, 10).sigmoid()  # nothing to find: the field is torn about
    plain, integrated = (last(moving, unlike, start, wild, d) for d in (False, True))
    folded = [float((field.jacobian_determinant(u) <= 0).float().mean()) for u in (plain, integrated)]
    assert folded[0] > 0.02 and folded[1] < folded[0] / 20, folded


def test_levels_do_not_blur_what_the_network_found():
    """With a rate of next to nothing the start comes out as it went in, whatever levels there are."""
    shape = (64, 56, 60)
    fine = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    start = field.integrate(0.5 * F.avg_pool3d(fine, 3, 1, 1))
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(2))
    steps = list(refine(image, image, start, Refinement(steps=2, rate=1e-9), diffeomorphic=True))
    assert [step.step for step in steps] == [1, 2]
    assert float((steps[-1].displacement - start).abs().max()) < 1e-4


def test_two_levels_find_what_one_cannot_reach():
    """Displacements of up to 6 voxels, on a grid large enough for two levels."""
    shape = (64, 56, 60)
    both = smooth(0, 1, 9), smooth(1, 3, 3)
    image, flow = (F.interpolate(small, size=shape, mode="trilinear", align_corners=True) for small in both)
    moving, truth = (4 * image).sigmoid(), 4 * flow
    fixed = field.warp(moving, truth, padding="border")
    errors = []
    for levels in ((1.0,), (0.5, 1.0)):
        settings = Refinement(steps=30, smoothness_weight=0.02, levels=levels)
        errors.append(error(list(refine(moving, fixed, 0 * truth, settings))[-1].displacement, truth))
    assert errors[1] < errors[0] < error(0 * truth, truth)


def test_the_caller_keeps_its_own_grad_mode(planted):
    moving, fixed, truth = planted
    steps = refine(moving, fixed, truth, Refinement(steps=3))
    next(steps)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        inside = list(refine(moving, fixed, truth, Refinement(steps=2)))
        assert torch.is_inference_mode_enabled()
    assert len(inside) == 2 and torch.is_grad_enabled()


def test_nothing_is_made_worse_and_that_is_said(planted):
    moving, _, truth = planted
    run = {"diffeomorphic": False, "device": torch.device("cpu"), "told": lambda fraction: None}
    wild = refine_on_pair(moving, moving, torch.zeros_like(truth), Refinement(steps=3, rate=50.0, damping=0.0), **run)
    assert "dropped: no gain" in wild.reason
    assert float(wild.displacement.abs().max()) == 0


def test_inverted_contrast_makes_no_difference_to_the_local_correlation(planted):
    moving, fixed, truth = planted
    correction = 0.5 * truth
    same, inverted = (float(LocalCorrelation(m, fixed)(correction)) for m in (moving, 1 - moving))
    assert same == pytest.approx(inverted, abs=1e-4)


def test_the_local_correlation_is_that_of_the_training_loss(planted):
    moving, fixed, truth = planted
    ours = LocalCorrelation(moving, fixed, window=9)
    for displacement in (torch.zeros_like(truth), truth):
        expected = lncc(field.warp(moving, displacement, padding="border"), fixed, 9)
        assert float(ours(displacement)) == pytest.approx(float(expected), abs=1e-4)


def test_the_gradient_of_the_local_correlation_is_right():
    moving, fixed = (smooth(s, 1, 6)[..., :7, :6, :5].sigmoid().double() for s in (7, 8))
    measure = LocalCorrelation(moving, fixed, window=3)
    at = 0.3 + 0.1 * torch.rand(1, 3, 7, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(measure, (at.requires_grad_(True),), eps=1e-6, atol=1e-5)


def test_self_similarity_does_not_see_contrast(planted):
    moving = planted[0]
    one, other = self_similarity(moving), self_similarity(0.9 - 0.5 * moving)
    assert one.shape == (1, 12, *SHAPE)
    assert one.min() >= 0 and one.max() <= 1 and one.std() > 0.1
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_self_similarity_is_least_at_the_right_place(planted):
    moving, fixed, truth = planted
    measure = SelfSimilarity(moving, fixed)
    at = [float(measure(share * truth)) for share in (0.0, 0.5, 1.0, 1.5)]
    assert at.index(min(at)) == 2


def test_a_harmful_start_is_dropped_and_said(planted):
    moving, fixed, truth = planted
    settings = Refinement(steps=4)
    run = {"diffeomorphic": False, "device": torch.device("cpu"), "told": lambda fraction: None}
    good = refine_on_pair(moving, fixed, truth, settings, **run)
    bad = refine_on_pair(moving, fixed, -2 * truth, settings, **run)
    assert "from the network's displacement" in good.reason
    assert "the network did harm" in bad.reason
    assert error(bad.displacement, truth) < error(-2 * truth, truth)


def test_progress_is_told_and_what_it_raises_comes_out(planted):
    moving, fixed, truth = planted
    told: list[float] = []
    run = {"diffeomorphic": False, "device": torch.device("cpu")}
    refine_on_pair(moving, fixed, truth, Refinement(steps=5), told=told.append, **run)
    assert told == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_on_pair(moving, fixed, truth, Refinement(steps=5), told=stop, **run)


def test_the_similarity_is_chosen_by_the_contrasts_and_can_be_overruled():
    related, unrelated = Relation(-0.9, 0.85), Relation(0.1, 0.05)
    assert choose_similarity("auto", related, 0.9)[0] == "lncc"
    assert choose_similarity("auto", unrelated, 0.9)[0] == "mind"
    assert choose_similarity("auto", related, 0.1)[0] == "mind"
    assert choose_similarity("mind", related, 0.9)[0] == "mind"
    assert choose_similarity("lncc", unrelated, 0.1)[0] == "lncc"
    assert "85 %" in choose_similarity("auto", related, 0.9)[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"similarity": "ssd"}, "lncc"),
        ({"levels": ()}, "levels"),
        ({"levels": (2.0,)}, "levels"),
        ({"levels": (1.0, 0.5)}, "levels"),
        ({"finest": 4}, "finest"),
        ({"rate": 0.0}, "rate"),
        ({"smoothness_weight": -1.0}, "smoothness_weight"),
        ({"damping": -1.0}, "damping"),
        ({"squarings": 0}, "squarings"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Refinement(**wrong)


@pytest.mark.parametrize(
    ("steps", "similarity"), [(-1, "auto"), (True, "auto"), (1.5, "auto"), (3, "ssd"), (0, "mind")]
)
def test_what_register_is_asked_for_is_checked_first(steps, similarity):
    with pytest.raises(InputError, match=r"whole number|one of|none was asked"):
        check_refinement(steps, similarity)


def test_the_finest_level_is_bounded_and_the_result_stands_on_the_full_grid(planted):
    moving, fixed, truth = planted
    coarse = list(refine(moving, fixed, 0 * truth, Refinement(steps=20, finest=24, smoothness_weight=0.02)))
    assert all(step.displacement.shape == truth.shape for step in coarse)
    assert error(coarse[-1].displacement, truth) < 0.6 * error(0 * truth, truth)


def test_a_small_image_has_one_level():
    image = torch.rand(1, 1, 12, 10, 9, generator=torch.Generator().manual_seed(3))
    steps = list(refine(image, image, torch.zeros(1, 3, 12, 10, 9), Refinement(steps=3)))
    assert [tuple(step.displacement.shape[2:]) for step in steps] == [(12, 10, 9)] * 3
