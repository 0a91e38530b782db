"""Labels from what each expert would have done, against loops and against shifts that are known."""

from __future__ import annotations

import pytest
import torch

from napari_shmoareg.model import GateId, NetworkOutput, RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.training.expert_losses import (
    TIE_TOLERANCE,
    counterfactual_labels,
    counterfactual_loss,
    local_errors,
)
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import fine_tune, total_loss

SHAPE = (16, 20, 12)


def test_the_label_is_the_expert_of_the_least_error_and_ties_stay_with_the_chosen_one():
    errors = torch.rand(2, 3, 4, 3, 5)
    errors[:, :, :2] = 0.5  # alike
    errors[0, 1, 3] = errors[0, 0, 3] - 0.5 * TIE_TOLERANCE
    chosen = torch.randint(0, 3, (2, 1, 4, 3, 5))
    labels = counterfactual_labels(errors, chosen)
    for b, i, j, k in torch.cartesian_prod(*(torch.arange(n) for n in (2, 4, 3, 5))).tolist():
        here, mine = errors[b, :, i, j, k].tolist(), int(chosen[b, 0, i, j, k])
        best = mine if here[mine] <= min(here) + TIE_TOLERANCE else here.index(min(here))
        assert labels[b, :, i, j, k].tolist() == [float(n == best) for n in range(3)]


def shifted_ball(by: float) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SHAPE]
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    return torch.exp(-(i**2 + (j - by) ** 2 + k**2) / 12)[None, None]


def record(stride: int, direction: str, residuals: tuple[float, float, float]) -> RoutedLayer:
    """A level whose first expert was chosen everywhere, each expert giving one residual, in its
    voxels.
    """
    shape = tuple(n // stride for n in SHAPE)
    each = torch.tensor(residuals).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()
    experts = torch.zeros(1, 1, *shape, dtype=torch.int64)
    probabilities = torch.full((1, 3, *shape), 0.5, requires_grad=True)
    return RoutedLayer(
        GateId("decoder", stride, direction=direction),
        stride,
        Routing(probabilities, experts, torch.full((1, 1, *shape), 0.5)),
        residual=each[:, :1],
        alternatives=each,
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("similarity", ["mse", "lncc"])
def test_the_expert_that_would_bring_the_images_together_has_the_least_error(stride, similarity):
    """The ball has to be looked for two voxels further along y: the third expert alone would do
    so.
    """
    moving, fixed = shifted_ball(2.0), shifted_ball(0.0)
    layer = record(stride, "y", (0.0, -2.0 / stride, 2.0 / stride))
    errors = local_errors(layer, torch.zeros(1, 3, *SHAPE), moving, fixed, similarity)
    assert errors.shape == (1, 3, *(n // stride for n in SHAPE))
    ball = fixed[:, 0, ::stride, ::stride, ::stride] > 0.3
    assert bool((errors.argmin(1)[ball] == 2).all())
    same = local_errors(
        record(stride, "y", (0.0, 0.0, 0.0)), torch.zeros(1, 3, *SHAPE), moving, fixed, similarity
    )
    assert torch.equal(same[:, 0], same[:, 1])
    wrong_axis = record(stride, "x", (0.0, -2.0 / stride, 2.0 / stride))
    other = local_errors(wrong_axis, torch.zeros(1, 3, *SHAPE), moving, fixed, similarity)
    assert float(other[:, 2][ball].mean()) > 2 * float(errors[:, 2][ball].mean())


def test_what_the_rest_of_the_displacement_does_counts():
    """Where the displacement has brought the ball home already, exchanging residuals makes it
    worse.
    """
    moving, fixed = shifted_ball(2.0), shifted_ball(0.0)
    home = torch.zeros(1, 3, *SHAPE)
    home[:, 1] = 2.0
    errors = local_errors(record(1, "y", (0.0, -2.0, 2.0)), home, moving, fixed, "mse")
    ball = fixed[:, 0] > 0.3
    assert bool((errors.argmin(1)[ball] == 0).all())


def test_the_gate_learns_to_choose_the_expert_that_would_have_been_better():
    moving, fixed = shifted_ball(2.0), shifted_ball(0.0)
    layer = record(1, "y", (0.0, -2.0, 2.0))
    output = NetworkOutput(torch.zeros(1, 3, *SHAPE), RoutingTrace((layer,)))
    (slope,) = torch.autograd.grad(
        counterfactual_loss(output, moving, fixed, "mse"), [layer.routing.probabilities]
    )
    ball = fixed[:, 0] > 0.3
    assert bool((slope[:, 2][ball] < 0).all()) and bool(
        (slope[:, :2].transpose(0, 1)[:, ball] > 0).all()
    )


def test_a_level_coarser_than_the_image_has_no_labels():
    moving, fixed = torch.rand(2, 1, 1, 6, 20, 12)
    layer = record(8, "y", (0.0, -1.0, 1.0))
    output = NetworkOutput(torch.zeros(1, 3, 6, 20, 12), RoutingTrace((layer,)))
    assert float(counterfactual_loss(output, moving, fixed, "mse")) == 0


def test_levels_that_did_not_compare_their_experts_are_refused(tiny_network):
    moving, fixed = torch.rand(2, 1, 1, *SHAPE)
    settings = FineTuning(routing_target="counterfactual")
    with pytest.raises(ValueError, match=r"decoder-.* were not compared"):
        total_loss(tiny_network(moving, fixed), moving, fixed, settings)


def test_learning_compares_the_experts_and_leaves_the_network_as_it_was(tiny_network):
    from napari_shmoareg.training.synthesis import SyntheticPairs
    from napari_shmoareg.training.synthesis_settings import SynthesisSettings

    pairs = SyntheticPairs([], SynthesisSettings(size=(12, 14)))
    before = {name: value.clone() for name, value in tiny_network.state_dict().items()}
    settings = FineTuning(
        steps=2, routing_target="counterfactual", routing_weight=0.05, similarity="lncc"
    )
    steps = list(fine_tune(tiny_network, pairs, settings))
    assert all(step.routing > 0 for step in steps)
    assert not any(level.compare_experts for level in tiny_network.decoder.levels)
    gate = "decoder.levels.3.head.gates.x.weight"
    assert not torch.equal(before[gate], tiny_network.state_dict()[gate])
