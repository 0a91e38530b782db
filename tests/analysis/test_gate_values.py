"""What the gates gave each expert, and how sure they were."""

from __future__ import annotations

import numpy as np
import pytest

from napari_shmoareg.experts.maps import entropy_of, gate_values, margin_of


def test_there_is_a_gate_for_every_record_in_the_order_of_the_forward(registration):
    gates = gate_values(registration)
    assert [gate.name for gate in gates] == [
        f"{record.name}-gate" for record in registration.routing
    ]
    for gate, record in zip(gates, registration.routing, strict=True):
        expected = np.moveaxis(record.routing.probabilities[0].numpy(), 0, -1)
        assert gate.values.dtype == np.float32 and (gate.values == expected).all()
        assert gate.grid.same_space(registration.network_grid.coarsen(gate.stride))
        assert (
            gate.top_k == record.routing.experts.shape[1] and gate.num_experts == record.num_experts
        )


def test_the_values_take_no_memory_of_their_own(registration):
    for gate, record in zip(gate_values(registration), registration.routing, strict=True):
        assert np.shares_memory(gate.values, record.routing.probabilities.numpy())


def test_a_softmax_sums_to_one_and_a_sigmoid_does_not(registration):
    gates = {
        part: [g for g in gate_values(registration) if g.part == part]
        for part in ("encoder", "decoder")
    }
    assert all(gate.values.sum(axis=-1) == pytest.approx(1, abs=1e-5) for gate in gates["encoder"])
    assert not any(
        gate.values.sum(axis=-1) == pytest.approx(1, abs=1e-2) for gate in gates["decoder"]
    )


def test_moving_and_fixed_tokens_have_values_of_their_own(registration):
    gates = {gate.name: gate.values for gate in gate_values(registration)}
    assert np.abs(gates["encoder-1-0-moving-gate"] - gates["encoder-1-0-fixed-gate"]).max() > 1e-3
    (record,) = registration.routing.select(part="encoder", layer=1, block=0, image="fixed")
    assert (
        gates["encoder-1-0-fixed-gate"][..., 0] == record.routing.probabilities[0, 0].numpy()
    ).all()


def test_the_largest_values_are_those_of_the_chosen_experts(registration):
    for gate, record in zip(gate_values(registration), registration.routing, strict=True):
        largest = np.sort(gate.values, axis=-1)[..., ::-1][..., : gate.top_k]
        chosen = np.take_along_axis(
            gate.values, np.moveaxis(record.routing.experts[0].numpy(), 0, -1).astype(int), -1
        )
        assert (largest == chosen).all()


def test_entropy_is_zero_for_one_expert_and_one_for_all_alike():
    one = np.eye(4, dtype=np.float32)[None, None]
    assert entropy_of(one).shape == (1, 1, 4) and (entropy_of(one) == 0).all()
    for alike in (1e-4, 0.25, 0.9):
        assert entropy_of(np.full((2, 3, 4, 5), alike, np.float32)) == pytest.approx(1, abs=1e-6)
    assert entropy_of(np.zeros((1, 3), np.float32)) == 1, "all got the same: nothing"
    assert entropy_of(np.full((7, 1), 0.3, np.float32)) == pytest.approx(0)


def test_entropy_agrees_with_a_slow_sum_and_forgets_the_scale(registration):
    for gate in gate_values(registration):
        found = gate.entropy()
        assert found.grid is gate.grid and found.values.dtype == np.float32
        for cell in (
            (0, 0, 0),
            tuple(n - 1 for n in gate.grid.shape),
            tuple(n // 2 for n in gate.grid.shape),
        ):
            values = [float(v) for v in gate.values[cell]]
            shares = [v / sum(values) for v in values]
            slow = -sum(p * np.log(p) for p in shares) / np.log(len(shares))
            assert found.values[cell] == pytest.approx(slow, abs=1e-5)
            assert float(entropy_of(gate.values[cell] / 2)) == pytest.approx(slow, abs=1e-5)


def test_the_margin_is_between_the_last_that_was_chosen_and_the_next(registration):
    for gate in gate_values(registration):
        found = gate.margin()
        assert (
            found.grid is gate.grid and found.values.dtype == np.float32 and found.values.min() >= 0
        )
        for cell in np.ndindex(*gate.grid.shape):
            if sum(cell) % 5:
                continue
            ordered = sorted((float(v) for v in gate.values[cell]), reverse=True)
            assert found.values[cell] == pytest.approx(
                ordered[gate.top_k - 1] - ordered[gate.top_k], abs=1e-7
            )


def test_the_margin_is_full_where_every_expert_is_chosen():
    values = np.random.default_rng(0).random((2, 3, 4, 3)).astype(np.float32)
    assert (margin_of(values, 3) == 1).all() and (margin_of(values, 2) < 1).all()
