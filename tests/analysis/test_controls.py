"""Controls: what each keeps and what it changes, in which passes, and that nothing stays behind."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.controls import KINDS, Control, cells_of, controls_of, equal_loads
from napari_shmoareg.experts.experiment import Experiment, run_with_changes
from napari_shmoareg.experts.intervention import Intervention, changed_gates
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.gate_sites import attentions_of, gates_of
from napari_shmoareg.model.moa import attend
from napari_shmoareg.model.shmoe import SHMoE
from napari_shmoareg.registration.replay import Replay

GATE_KINDS = (
    "shuffled shuffled_choice moved moved_near random fixed untrained_gate constant_weights".split()
)


@pytest.fixture
def network(lively_network):
    """Two passes, on 18 and 26 voxels along the longest axis."""
    made = lively_network(0.05)
    object.__setattr__(made.config, "passes", (0.7, 1.0))
    return made


@pytest.fixture
def replay(pair, network):
    return Replay.of(pair, network, settings={"size": 26})


class Seen:
    """Every call of every gate while a control acts: the values before and after it, valid cells
    (n, N) apart.
    """

    def __init__(self, network, control, grid):
        self.network, self.control, self.grid = network, control, grid
        self.calls = []

    def __enter__(self):
        self.stack = ExitStack()
        self.valid = None

        def begin(module, args):
            self.valid = args[1]

        self.stack.callback(self.network.encoder.register_forward_pre_hook(begin).remove)
        for site in gates_of(self.network):  # hooks run in the order in which they were registered
            self.stack.callback(
                site.module.register_forward_hook(self._note(site, "before")).remove
            )
        self.stack.enter_context(changed_gates(self.network, [self.control], self.grid))
        for site in gates_of(self.network):
            self.stack.callback(site.module.register_forward_hook(self._note(site, "after")).remove)
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def _note(self, site, when):
        def hook(module, args, output):
            values = output if site.part == "encoder" else output.movedim(1, -1)
            if when == "before":
                self.calls.append(
                    {"site": site, "cells": cells_of(self.valid, site.stride), "args": args}
                )
            last = next(call for call in reversed(self.calls) if call["site"].module is site.module)
            last[when] = values.detach().clone()

        return hook

    def of_control(self):
        """Per call and item of its batch: site, cells, values before and after (n, N)."""
        found = []
        for call in self.calls:
            if self.control.selects(call["site"].gate):
                i, j, k = call["cells"]
                for item in range(len(call["before"])):
                    inner = [call[w][item, :i, :j, :k].flatten(0, 2) for w in ("before", "after")]
                    found.append((call["site"], call["cells"], *inner))
        return found


def watch(replay, control):
    with Seen(replay.network, control, replay.grid) as seen:
        replay.from_first_pass().run()
    return seen


def selections(values, k):
    own, ids = torch.topk(values, k, dim=-1)
    return own, ids, torch.bincount(ids.flatten(), minlength=values.shape[-1])


def multiset(values, k):
    own, ids, _ = selections(values, k)
    return Counter(map(tuple, torch.cat([own.double(), ids.double()], -1).tolist()))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", GATE_KINDS)
def test_a_control_of_a_gate_keeps_and_changes_what_it_says(replay, network, part, name):
    control = Control(name, part)
    seen = watch(replay, control)
    sites = [site for site in gates_of(network) if site.part == part]
    calls = seen.of_control()
    images = 2 if part == "encoder" else 1
    assert len(calls) == 2 * images * len(sites), (
        "it acts in both passes, at every gate, on both images"
    )
    assert (
        len({cells for site, cells, *_ in calls if site.stride == min(s.stride for s in sites)})
        == 2
    )
    changed = 0
    for site, cells, before, after in calls:
        k = site.top_k
        own, ids, loads = selections(before, k)
        new, now, after_loads = selections(after, k)
        changed += int((ids.sort(-1).values != now.sort(-1).values).any())
        if name in ("shuffled", "moved", "moved_near"):
            assert multiset(before, k) == multiset(after, k)
        if (
            name
            in "shuffled shuffled_choice moved moved_near untrained_gate constant_weights".split()
        ):
            assert torch.equal(loads, after_loads)
        if name in ("shuffled_choice", "random", "fixed", "untrained_gate"):
            assert torch.equal(own, new), "every cell keeps its own weights, to the last bit"
        if name == "shuffled_choice":
            sets = [Counter(map(tuple, found.sort(-1).values.tolist())) for found in (ids, now)]
            assert sets[0] == sets[1], "the same sets of experts, at other cells"
        if name == "moved":
            i, j, kk = (n // 2 for n in cells)
            grid = before.unflatten(0, cells).numpy()
            np.testing.assert_array_equal(
                np.roll(grid, (i, j, kk), (0, 1, 2)), after.unflatten(0, cells).numpy()
            )
        if name == "moved_near":
            steps = [min(n // 2, 4) for n in cells]
            grid = before.unflatten(0, cells).numpy()
            np.testing.assert_array_equal(
                np.roll(grid, steps, (0, 1, 2)), after.unflatten(0, cells).numpy()
            )
        if name == "random":
            share = after_loads / after_loads.sum()
            spread = (site.num_experts * len(before) * k) ** -0.5
            assert (share - 1 / site.num_experts).abs().max() < 4 * spread
        if name == "fixed":
            most = loads.argsort(descending=True, stable=True)[:k]
            assert (now.sort(-1).values == most.sort().values).all()
        if name == "constant_weights":
            assert torch.equal(ids.sort(-1).values, now.sort(-1).values)
            wanted = (
                torch.full_like(own, 1 / k) if part == "encoder" else own.mean(0).expand_as(own)
            )
            torch.testing.assert_close(new, wanted)
            assert len(new.unique()) == 1
    if name == "fixed":
        assert changed, "some gate chose otherwise at some cell"
    else:
        assert changed == (0 if name == "constant_weights" else len(calls))


def test_a_silenced_kernel_is_chosen_nowhere_and_the_next_best_takes_its_place(replay, network):
    for expert in (None, 0, 2):
        for _, _, before, after in watch(
            replay, Control("silenced", "decoder", expert=expert)
        ).of_control():
            first = before.topk(2, dim=-1)
            silent = int(torch.bincount(first.indices[:, 0]).argmax()) if expert is None else expert
            there = first.indices[:, 0] == silent
            assert torch.equal(
                after.max(-1).indices, torch.where(there, first.indices[:, 1], first.indices[:, 0])
            )
            assert torch.equal(
                after.max(-1).values, torch.where(there, first.values[:, 1], first.values[:, 0])
            )
    assert Control("silenced", "decoder", expert=2).title_with("5x5x5") == "5x5x5 silenced"


def test_padding_and_the_other_part_are_left_as_they_were(replay, network):
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        for call in watch(replay, Control("shuffled", part)).calls:
            if call["site"].part == other:
                assert torch.equal(call["before"], call["after"])
            else:
                i, j, k = call["cells"]
                padding = torch.ones(call["before"].shape[1:4], dtype=torch.bool)
                padding[:i, :j, :k] = False
                assert torch.equal(call["before"][:, padding], call["after"][:, padding])


def test_the_draws_of_passes_gates_and_images_differ_but_not_with_what_ran_before(replay, network):
    first_gate = gates_of(network)[0].module

    def plant(module, args, output):  # so that no two cells are alike
        return torch.rand(output.shape, generator=torch.Generator().manual_seed(0))

    def orders(control, run):
        """Per grid, of both images: whose values each cell of the first gate was given."""
        handle = first_gate.register_forward_hook(plant)
        with Seen(network, control, replay.grid) as seen:
            run()
        handle.remove()
        found = {}
        for site, cells, before, after in seen.of_control():
            if site.module is first_gate:
                rows = {tuple(row): n for n, row in enumerate(before.tolist())}
                found.setdefault(cells, []).append([rows[tuple(row)] for row in after.tolist()])
        return found

    control = Control("shuffled", "encoder", seed=3)
    first = orders(control, lambda: replay.from_first_pass().run())
    assert len(first) == 2 and all(
        len(found) == 2 and found[0] != found[1] for found in first.values()
    )
    with changed_gates(network, [Control("random", "encoder", seed=9)], replay.grid):
        replay.from_first_pass().run()
    # the last pass alone: its draw is what it was in the cascade
    alone = orders(control, replay.run)
    assert len(alone) == 1 and all(first[cells] == found for cells, found in alone.items())
    other = orders(Control("shuffled", "encoder", seed=4), replay.run)
    assert all(other[cells] != first[cells] for cells in other)


def test_all_passes_are_changed_or_the_last_alone(replay, network):
    plain, _ = replay.run()
    for part in ("encoder", "decoder"):
        with changed_gates(network, [Control("shuffled", part)], replay.grid):
            under = replay.from_first_pass()
            whole, _ = under.run()
        assert not torch.equal(under.start, replay.start)
        found, _ = run_with_changes(replay, [Control("shuffled", part)])
        assert torch.equal(found, whole) and not torch.equal(whole, plain)
        last, _ = run_with_changes(replay, [Control("shuffled", part, passes="last")])
        with changed_gates(network, [Control("shuffled", part, passes="last")], replay.grid):
            from_the_same_start, _ = replay.run()
        assert torch.equal(last, from_the_same_start) and not torch.equal(last, whole)
    assert torch.equal(replay.from_first_pass().start, replay.start), (
        "without hooks the start is what it was"
    )


def test_without_a_control_the_run_is_the_registration_to_the_last_bit(replay, network):
    plain, routing = replay.run()
    found, same = run_with_changes(replay)
    assert torch.equal(plain, found) and torch.equal(replay.from_first_pass().run()[0], plain)
    assert all(
        torch.equal(a.routing.experts, b.routing.experts)
        for a, b in zip(routing, same, strict=True)
    )


@pytest.mark.parametrize("name", KINDS)
def test_nothing_stays_behind(replay, network, name):
    state = copy.deepcopy(network.state_dict())
    top_k = [site.owner.top_k for site in gates_of(network)]
    plain, _ = replay.run()
    for part in KINDS[name].parts:
        changed, _ = run_with_changes(replay, [Control(name, part)])
        assert not torch.equal(changed, plain)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    assert not any(hooks) and [site.owner.top_k for site in gates_of(network)] == top_k
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(replay.run()[0], plain)


def test_an_error_in_the_block_or_in_a_later_control_leaves_no_hook(replay, network):
    with (
        pytest.raises(ZeroDivisionError),
        changed_gates(network, [Control("shuffled", "encoder")], replay.grid),
    ):
        raise ZeroDivisionError
    changes = [Intervention("silence", 0, "decoder"), Control("shuffled", "encoder", layer=9)]
    with (
        pytest.raises(InputError, match="matches no gate"),
        changed_gates(network, changes, replay.grid),
    ):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_attention_off_leaves_the_mlps(replay, network):
    calls = []
    block = network.encoder.layers[1].blocks[1]
    handle = block.register_forward_hook(lambda m, args, out: calls.append((args[0], out[0])))
    with changed_gates(network, [Control("attention_off", "encoder")], replay.grid):
        replay.from_first_pass().run()
    handle.remove()
    assert len(calls) == 2
    with torch.inference_mode():
        for x, y in calls:
            assert torch.equal(y, x + block.mlp(block.mlp_norm(x)))
            assert not torch.equal(y, x)


def test_attention_off_of_one_image_and_layer_leaves_the_rest(replay, network):
    taken = []
    handles = [
        attention.register_forward_hook(
            lambda m, args, out, at=(layer, block): taken.append((at, out[0].clone()))
        )
        for layer, block, attention in attentions_of(network)
    ]
    control = Control("attention_off", "encoder", layer=2, block=0, image="moving")
    # its hooks come after those above: see the next layer's input
    with changed_gates(network, [control], replay.grid):
        replay.run()
    for handle in handles:
        handle.remove()
    after = []
    with changed_gates(network, [control], replay.grid):
        moa = next(a for layer, block, a in attentions_of(network) if (layer, block) == (2, 0))
        handle = moa.register_forward_hook(lambda m, args, out: after.append(out[0]))
        replay.run()
        handle.remove()
    raw = next(y for at, y in taken if at == (2, 0))
    moving, fixed = after[0].chunk(2)
    assert not moving.any() and torch.equal(fixed, raw.chunk(2)[1])


def test_plain_attention_can_be_taken_out_too(pair):
    plain = SHMoAReg(SHMoARegConfig.preset("tiny", attention="mha", shmoe_strides=())).eval()
    assert not gates_of(plain)
    assert [control.name for control in controls_of(plain)] == ["attention_off"]
    with changed_gates(
        plain, controls_of(plain), Replay.of(pair, plain, settings={"size": 16}).grid
    ):
        assert all(len(a._forward_hooks) == 1 for _, _, a in attentions_of(plain))


def test_uniform_is_the_mean_of_the_heads(replay, network):
    calls = []
    moa = next(a for layer, block, a in attentions_of(network) if (layer, block) == (2, 1))
    with changed_gates(network, [Control("uniform", "encoder")], replay.grid):
        handle = moa.register_forward_hook(lambda m, args, out: calls.append((args, out)))
        replay.run()
        handle.remove()
    (tokens, layout, bias), (y, routing) = calls[0]
    with torch.inference_mode():
        key, value = (layout.cut(tokens @ weight)[:, None] for weight in (moa.key, moa.value))
        heads = []
        for n in range(moa.num_experts):
            attended = attend(layout.cut(tokens @ moa.query[n])[:, None], key, value, bias)[:, 0]
            heads.append(layout.join(attended) @ moa.output[n])
        torch.testing.assert_close(y, torch.stack(heads).mean(0), atol=1e-6, rtol=1e-4)
    assert routing.experts.shape[1] == moa.num_experts > moa.top_k


@pytest.mark.parametrize("direction", [None, "y"])
def test_the_mean_of_the_kernels_is_the_mean_of_the_kernels(replay, network, direction):
    head = next(m for m in network.modules() if isinstance(m, SHMoE))
    gates = {
        d: next(s for s in gates_of(network) if s.owner is head and s.direction == d) for d in "xyz"
    }
    values, calls = {}, []
    handles = [
        site.module.register_forward_hook(lambda m, args, out, d=d: values.__setitem__(d, out))
        for d, site in gates.items()
    ]
    plain = head.register_forward_hook(lambda m, args, out: calls.append((args[0], out[0])))
    with changed_gates(
        network, [Control("mean_of_kernels", "decoder", direction=direction)], replay.grid
    ):
        handles.append(
            head.register_forward_hook(lambda m, args, out: calls.append((args[0], out[0])))
        )
        replay.run()
    for handle in (*handles, plain):
        handle.remove()
    (features, unchanged), (_, residual) = calls[-2:]
    with torch.inference_mode():
        for axis, d in enumerate("xyz"):
            if direction in (None, d):
                kernels: list[nn.Conv3d] = list(head.experts[d])
                outputs = [
                    F.conv3d(features, c.weight, c.bias, padding=c.kernel_size[0] // 2)
                    for c in kernels
                ]
                expected = values[d].amax(1, keepdim=True) * torch.stack(outputs).mean(0)
                torch.testing.assert_close(
                    residual[:, axis : axis + 1], expected, atol=1e-6, rtol=1e-4
                )
                assert not torch.equal(residual[:, axis], unchanged[:, axis])
            else:
                assert torch.equal(residual[:, axis], unchanged[:, axis])


def test_one_expert_everywhere_is_the_force_of_that_expert(pair, lively_network):
    """Two ways to the same: in a network of one pass they agree to the last bit."""
    network = lively_network(0.05)
    experiment = Experiment(Replay.of(pair, network, settings={"size": 20}))
    for expert in range(3):
        forced = experiment.run(Intervention("force", expert, "decoder"))
        fixed = experiment.run(Control("fixed", "decoder", expert=expert))
        np.testing.assert_array_equal(
            forced.outcome.displacement.vectors, fixed.outcome.displacement.vectors
        )
        assert all(
            (r.routing.experts == expert).all()
            for r in fixed.outcome.routing.select(part="decoder")
        )
        assert fixed.changed == pytest.approx(forced.changed) and fixed.cells == forced.cells


def test_an_experiment_takes_controls_and_interventions_together(replay, network):
    experiment = Experiment(replay)
    control = Control("shuffled", "decoder", layer=1)
    effect = experiment.run(control)
    assert torch.equal(
        torch.from_numpy(effect.outcome.displacement.vectors),
        torch.from_numpy(
            replay.conformed.transform(run_with_changes(replay, [control])[0])
            .total(replay.pair.fixed.grid)
            .vectors
        ),
    )
    assert 0 < effect.changed < 1 and effect.mean_mm > 0 and "shuffled" in str(control)
    both = experiment.run(control, Intervention("silence", 0, "encoder", 1))
    assert all(
        not (r.routing.experts == 0).any()
        for r in both.outcome.routing.select(part="encoder", layer=1)
    )
    assert experiment.run(Control("uniform", "encoder")).changed == 1
    assert experiment.run(Control("mean_of_kernels", "decoder", passes="last")).changed == 1


def test_equal_loads_are_met_to_the_cell_and_the_best_are_chosen():
    scores = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    for top_k, loads in (
        (1, [300, 100, 60, 30, 10, 0]),
        (2, [480, 200, 150, 100, 60, 10]),
        (2, [500, 500, 0, 0, 0, 0]),
    ):
        chosen = equal_loads(scores, torch.tensor(loads), top_k)
        assert torch.bincount(chosen.flatten(), minlength=6).tolist() == loads
        assert all(len(set(row)) == top_k for row in chosen.tolist())
    free = scores.argmax(1)
    own = torch.bincount(free, minlength=6)
    assert (equal_loads(scores, own, 1)[:, 0] == free).float().mean() > 0.9, (
        "its own loads take next to no bias"
    )


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"name": "uniform", "part": "decoder"}, "no control 'uniform' of the decoder"),
        ({"name": "turned", "part": "decoder"}, "Choose one of: shuffled, "),
        ({"name": "shuffled", "part": "encoder", "passes": "first"}, "'all' or 'last'"),
        ({"name": "shuffled", "part": "encoder", "expert": 1}, "does not apply to a single expert"),
        ({"name": "shuffled", "part": "encoder", "seed": -1}, "whole number from 0"),
    ],
)
def test_what_is_no_control_is_refused(what, says):
    with pytest.raises(InputError, match=says):
        Control(**what)


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (Control("shuffled", "decoder", layer=7), "matches no gate"),
        (Control("shuffled", "decoder", image="moving"), "matches no gate"),
        (Control("attention_off", "encoder", layer=7), "matches no gate"),
        (Control("fixed", "decoder", expert=3), "experts 0 to 2"),
        (Control("fixed", "encoder", expert=1), "chooses 2 of the experts"),
    ],
)
def test_what_a_network_does_not_have_is_refused(replay, control, says):
    with pytest.raises(InputError, match=says):
        run_with_changes(replay, [control])


def test_every_control_of_a_network_is_listed_once(network):
    found = controls_of(network, passes="last", seed=5)
    assert len(set(found)) == len(found) and all((c.passes, c.seed) == ("last", 5) for c in found)
    assert {(c.name, c.part) for c in found} == {
        (name, part) for name, kind in KINDS.items() for part in kind.parts
    }
    assert [c.expert for c in found if c.name == "fixed" and c.part == "decoder"] == [0, 1, 2]
    assert [c.expert for c in found if c.name == "fixed" and c.part == "encoder"] == [None]
