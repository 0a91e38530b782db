"""A refinement finds a deformation that was planted, keeps still where nothing is seen, and stays
invertible.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import field
from napari_shmoareg.registration.contrast import Relation
from napari_shmoareg.registration.deformation import (
    choose_similarity,
    refine_on_pair,
)
from napari_shmoareg.registration.losses import lncc
from napari_shmoareg.registration.refinement import (
    Refinement,
    _box,
    _composed,
    _gaussian,
    _LocalCorrelationForce,
    _unfolded,
    refine,
)
from napari_shmoareg.registration.similarity import (
    LocalCorrelation,
    SelfSimilarity,
    self_similarity,
)
from napari_shmoareg.settings import RegistrationSettings

SHAPE = (36, 40, 32)


def smooth(seed: int, channels: int, knots: int) -> Tensor:
    coarse = torch.randn(
        1, channels, knots, knots, knots, generator=torch.Generator().manual_seed(seed)
    )
    return F.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=True)


@pytest.fixture(scope="module")
def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Moving, fixed and the displacement between them, up to about 3 voxels."""
    moving = (4 * smooth(0, 1, 9)).sigmoid()
    truth = 1.2 * smooth(1, 3, 4)
    return moving, field.warp(moving, truth, padding="border"), truth


def last(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor | None,
    settings: Refinement,
    diffeomorphic: bool = False,
) -> Tensor:
    steps = list(refine(moving, fixed, start, settings, diffeomorphic=diffeomorphic))
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) <= settings.steps * len(settings.levels)
    return steps[-1].displacement(fixed.shape[2:])


def error(found: Tensor, truth: Tensor) -> float:
    inner = (slice(None), slice(None), *[slice(4, -4)] * 3)
    return float((found - truth)[inner].norm(dim=1).mean())


@pytest.mark.parametrize("diffeomorphic", [False, True])
@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_a_planted_deformation_is_found_from_nothing(planted, similarity, diffeomorphic):
    moving, fixed, truth = planted
    found = last(moving, fixed, None, Refinement(similarity=similarity), diffeomorphic)
    assert error(found, truth) < 0.5 * error(torch.zeros_like(truth), truth)


def test_what_the_network_found_is_kept_and_improved(planted):
    moving, fixed, truth = planted
    start = 0.7 * truth
    found = last(moving, fixed, start, Refinement(steps=20))
    assert error(found, truth) < 0.8 * error(start, truth)


def test_the_correct_displacement_is_left_nearly_alone(planted):
    moving, fixed, truth = planted
    found = last(moving, fixed, truth, Refinement(steps=20))
    assert error(found, truth) < 0.2 * error(torch.zeros_like(truth), truth) + 0.02


def test_where_nothing_is_seen_nothing_moves():
    image = torch.zeros(1, 1, *SHAPE)
    image[..., 4:14, 4:14, 4:14] = smooth(2, 1, 12).sigmoid()[..., 4:14, 4:14, 4:14]
    noise = 1e-3 * torch.randn(2, 1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    moving, fixed = image + noise[0], torch.roll(image, 1, 2) + noise[1]
    found = last(moving, fixed, None, Refinement(steps=30))
    assert found[..., 6:12, 6:12, 6:12].norm(dim=1).mean() > 0.5
    assert found[..., 24:, 24:, 24:].norm(dim=1).max() < 0.3


def test_an_image_onto_itself_is_not_moved_at_all(planted):
    moving = planted[0]
    steps = list(refine(moving, moving, None, Refinement()))
    assert not steps or float(steps[-1].displacement(SHAPE).abs().max()) < 1e-4


def test_an_invertible_refinement_never_folds(planted):
    moving = planted[0]
    unlike = smooth(5, 1, 10).sigmoid()  # nothing to find: the displacement is torn about
    wild = Refinement(steps=40, elastic=0.0, fluid=0.5, step=1.0, gain=0.0)
    plain, invertible = (
        last(moving, unlike, None, wild, diffeomorphic) for diffeomorphic in (False, True)
    )
    folded = [
        float((field.jacobian_determinant(u) <= 0).float().mean()) for u in (plain, invertible)
    ]
    assert folded[0] > 0.001 and folded[1] == 0, folded


def test_more_elastic_smoothing_gives_a_smoother_displacement(planted):
    moving, fixed, _ = planted
    rough = [
        float(
            field.jacobian_determinant(
                last(moving, fixed, None, Refinement(steps=20, elastic=elastic))
            ).std()
        )
        for elastic in (0.3, 0.8)
    ]
    assert rough[1] < 0.8 * rough[0]


def test_a_level_ends_when_its_gain_is_spent(planted):
    moving, fixed, _ = planted
    patient, hasty = (
        len(list(refine(moving, fixed, None, Refinement(gain=gain)))) for gain in (0.0, 0.1)
    )
    assert hasty < 0.6 * patient <= 0.6 * 3 * 60


def test_coarse_levels_find_what_a_fine_one_cannot_reach():
    """Displacements of up to 6 voxels."""
    shape = (64, 56, 60)
    both = smooth(0, 1, 9), smooth(1, 3, 3)
    image, flow = (
        F.interpolate(small, size=shape, mode="trilinear", align_corners=True) for small in both
    )
    moving, truth = (4 * image).sigmoid(), 4 * flow
    fixed = field.warp(moving, truth, padding="border")
    errors = []
    for levels in ((1.0,), (0.25, 0.5, 1.0)):
        errors.append(error(last(moving, fixed, None, Refinement(steps=20, levels=levels)), truth))
    assert errors[1] < 0.5 * errors[0] and errors[0] < error(0 * truth, truth)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    similarity=st.sampled_from(["lncc", "mind"]),
    seed=st.integers(0, 9),
)
def test_every_shape_refines(shape, similarity, seed):
    moving, fixed = torch.rand(2, 1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    steps = list(
        refine(moving, fixed, None, Refinement(steps=3, similarity=similarity), diffeomorphic=True)
    )
    for step in steps:
        found = step.displacement(shape)
        assert found.shape == (1, 3, *shape) and bool(torch.isfinite(found).all())
        for axis, n in enumerate(shape):
            assert n > 1 or float(found[0, axis].abs().max()) == 0


@pytest.mark.parametrize("brightness", [0.0, 10.0, 1000.0])
def test_the_force_is_the_derivative_of_the_loss(planted, brightness):
    """Up to the constants that the closed form leaves out: the loss falls along it, and rises
    against it.
    """
    moving, fixed, _ = planted
    force = _LocalCorrelationForce(moving[0, 0], fixed[0, 0], 7, brightness)
    still = torch.zeros(3, *SHAPE)
    before, direction = force(still)
    ahead, back = (
        force(still + sign * 0.05 * direction / direction.abs().max())[0] for sign in (1, -1)
    )
    assert ahead < before < back


def test_shifted_sums_smooth_as_scipy_does():
    values = torch.rand(2, 9, 1, 13, generator=torch.Generator().manual_seed(0))
    for sigma in (0.55, 1.0, 2.0):
        expected = gaussian_filter(
            values.numpy(), (0, sigma, sigma, sigma), mode="nearest", truncate=3.0
        )
        np.testing.assert_allclose(_gaussian(values, sigma), expected, atol=2e-3)
    expected = 5**3 * uniform_filter(values.numpy(), (0, 5, 5, 5), mode="constant")
    np.testing.assert_allclose(_box(values, 5), expected, atol=1e-5)


def test_a_small_update_is_composed_as_by_interpolation():
    displacement, update = 3 * smooth(3, 3, 4)[0], 0.3 * smooth(4, 3, 4)[0]
    exact = field.compose(displacement[None], update[None])[0]
    apart, added = (
        (found - exact)[:, 2:-2, 2:-2, 2:-2].norm(dim=0).mean()
        for found in (_composed(displacement, update), displacement + update)
    )
    assert apart < 0.15 * added


def test_what_folds_is_smoothed_there_and_nowhere_else():
    displacement = torch.zeros(3, *SHAPE)
    displacement[0, 12, 12, 12] = -3.0
    found = _unfolded(displacement)
    assert (
        field.jacobian_determinant(displacement[None]).min()
        < 0
        < field.jacobian_determinant(found[None]).min()
    )
    assert found[:, :4].abs().max() == 0


def test_the_caller_keeps_its_own_grad_mode(planted):
    moving, fixed, truth = planted
    steps = refine(moving, fixed, truth, Refinement(steps=3))
    next(steps)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        inside = list(refine(moving, fixed, truth, Refinement(steps=2)))
        assert torch.is_inference_mode_enabled()
    assert len(inside) >= 2 and torch.is_grad_enabled()


def test_the_better_start_is_taken(planted):
    moving, fixed, truth = planted
    run = {"diffeomorphic": False, "device": torch.device("cpu"), "progress": lambda fraction: None}
    good = refine_on_pair(moving, fixed, 0.9 * truth, Refinement(steps=2, step=0.5), **run)
    bad = refine_on_pair(moving, fixed, -4 * truth, Refinement(steps=20), **run)
    assert "from the network's displacement" in good.reason
    assert "from the alignment alone" in bad.reason
    assert error(bad.displacement, truth) < 0.6 * error(0 * truth, truth)


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
    at = 0.3 + 0.1 * torch.rand(
        1, 3, 7, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
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


def test_progress_is_told_and_what_it_raises_comes_out(planted):
    moving, fixed, truth = planted
    told: list[float] = []
    run = {"diffeomorphic": False, "device": torch.device("cpu")}
    refine_on_pair(moving, fixed, 0 * truth, Refinement(steps=5), progress=told.append, **run)
    assert len(told) >= 5 and told == sorted(told) and told[-1] <= 1

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_on_pair(moving, fixed, 0 * truth, Refinement(steps=5), progress=stop, **run)


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
        ({"fluid": -1.0}, "fluid"),
        ({"elastic": -1.0}, "elastic"),
        ({"step": 0.0}, "step"),
        ({"gain": 1.0}, "gain"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Refinement(**wrong)


@pytest.mark.parametrize(
    ("steps", "similarity"), [(-1, "auto"), (True, "auto"), (1.5, "auto"), (3, "ssd"), (0, "mind")]
)
def test_what_register_is_asked_for_is_checked_first(steps, similarity):
    with pytest.raises(InputError, match=r"whole number|'lncc' or 'mind'|none was requested"):
        RegistrationSettings(refine=steps, similarity=similarity)


def test_the_finest_level_is_bounded_and_the_result_stands_on_the_full_grid(planted):
    moving, fixed, truth = planted
    steps = list(refine(moving, fixed, None, Refinement(steps=20, finest=24)))
    assert max(max(step.field.shape[1:]) for step in steps) == 24
    assert error(steps[-1].displacement(SHAPE), truth) < 0.6 * error(0 * truth, truth)


@pytest.fixture(scope="module")
def half() -> Tensor:
    """A mask of the half of the image with the low first axis."""
    mask = torch.zeros(1, 1, *SHAPE)
    mask[:, :, : SHAPE[0] // 2] = 1
    return mask


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_a_weight_of_one_everywhere_changes_nothing(planted, similarity):
    moving, fixed, _ = planted
    settings = Refinement(steps=8, similarity=similarity, brightness=3.0)
    free = list(refine(moving, fixed, None, settings))[-1]
    ones = list(refine(moving, fixed, None, settings, weight=torch.ones_like(fixed)))[-1]
    assert ones.step == free.step
    torch.testing.assert_close(ones.field, free.field, rtol=0, atol=1e-4)
    assert ones.similarity == pytest.approx(free.similarity, abs=1e-6)


@pytest.mark.parametrize(("similarity", "reach"), [("lncc", 0), ("mind", 4)])
def test_what_lies_outside_a_mask_has_no_say_and_what_lies_inside_is_found(
    planted, half, similarity, reach
):
    """Contexts of mind reach three voxels beyond their own, and are compared in twos."""
    moving, fixed, truth = planted
    settings = Refinement(steps=25, similarity=similarity)
    other = fixed.clone()
    beyond = SHAPE[0] // 2 + reach
    other[:, :, beyond:] = (3 * smooth(7, 1, 12)).sigmoid()[:, :, beyond:]
    found = [
        list(refine(moving, image, None, settings, weight=half))[-1].displacement(SHAPE)
        for image in (fixed, other)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6 if reach == 0 else 0.15)
    inside = (slice(None), slice(None), slice(4, SHAPE[0] // 2 - 4), *[slice(4, -4)] * 2)
    left = (found[0] - truth)[inside].norm(dim=1).mean() / truth[inside].norm(dim=1).mean()
    assert left < 0.35
    far = found[0][:, :, SHAPE[0] // 2 + 9 :].norm(dim=1)
    assert float(far.mean()) < 0.5 * float(found[0][inside].norm(dim=1).mean())


def test_the_better_start_is_judged_within_the_mask(planted, half):
    """Of a network that moves one half rightly and the other half the wrong way."""
    moving, fixed, truth = planted
    along = torch.arange(SHAPE[0])[:, None, None]
    halfway = truth * torch.tanh((SHAPE[0] / 2 - along) / 2)
    for weight, says in ((half, "network's displacement ("), (1 - half, "alignment alone (")):
        found = refine_on_pair(
            moving,
            fixed,
            halfway,
            Refinement(steps=1, step=0.01, elastic=0.0),  # hardly changes a start
            diffeomorphic=False,
            device=torch.device("cpu"),
            progress=lambda _: None,
            weight=weight,
        )
        assert says in found.reason, found.reason


def test_the_metrics_of_a_mask_are_those_of_its_voxels_alone(planted, half):
    moving, fixed, _ = planted
    still, cut = torch.zeros(1, 3, *SHAPE), SHAPE[0] // 2
    small = torch.zeros(1, 3, cut, *SHAPE[1:])
    for metric in (LocalCorrelation, SelfSimilarity):
        whole = metric(moving, fixed, weight=torch.ones_like(fixed))(still)
        assert float(whole) == pytest.approx(float(metric(moving, fixed)(still)), abs=1e-6)
    masked = LocalCorrelation(moving, fixed, weight=half)(still)
    alone = LocalCorrelation(moving[:, :, :cut], fixed[:, :, :cut])(small)
    assert float(masked) == pytest.approx(float(alone), abs=1e-5)
