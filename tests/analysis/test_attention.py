"""The attention of chosen heads: against the network's own output, and a slow reading of the
windows.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.attention import AttentionProbe
from napari_shmoareg.experts.intervention import Intervention, changed_gates
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.routing import GateId
from napari_shmoareg.registration.replay import Replay

IMAGES = ("moving", "fixed")


@pytest.fixture
def replay(pair, tiny_network):
    return Replay.of(pair, tiny_network, settings={"size": 30})


@pytest.fixture
def probe(replay):
    return AttentionProbe.of(replay)


@torch.inference_mode()
def test_the_attention_of_chosen_heads_makes_the_output_of_the_layer(replay, probe):
    """Eq. (3): y is the weighted sum of the chosen heads' outputs, at every third token, in plain
    and in shifted windows.
    """
    seen = {}

    def note(layer, block):
        return lambda module, args, output: seen.update(
            {(layer, block): (module, args[0], output[0])}
        )

    for stage, layer in enumerate(replay.network.encoder.layers, start=1):
        for number, block in enumerate(layer.blocks):
            block.attention.register_forward_hook(note(stage, number))
    replay.encode()
    assert sorted(seen) == [(1, 0), (2, 0), (2, 1)]
    for (layer, block), (module, tokens, output) in seen.items():
        grid = replay.grid.coarsen(4 * 2 ** (layer - 1))
        tokens_of_both = itertools.product((0, 1), np.ndindex(grid.shape))
        for image, cell in itertools.islice(tokens_of_both, 0, None, 3):
            found = torch.zeros(tokens.shape[-1])
            for head in probe.at(GateId("encoder", layer, block, IMAGES[image]), cell):
                values = (
                    tokens[image][: grid.shape[0], : grid.shape[1], : grid.shape[2]] @ module.value
                )
                mixed = torch.einsum("ijk,ijkd->d", torch.from_numpy(head.volume.values), values)
                found = found + head.weight * mixed @ module.output[head.head]
            torch.testing.assert_close(found, output[image][cell], atol=1e-5, rtol=1e-4)


def test_attention_sums_to_one_over_the_window_and_is_zero_outside(replay, probe):
    for layer, block in ((1, 0), (2, 0), (2, 1)):
        grid = replay.grid.coarsen(4 * 2 ** (layer - 1))
        for cell in np.ndindex(grid.shape):
            heads = probe.at(GateId("encoder", layer, block, "fixed"), cell)
            assert sum(head.weight for head in heads) == pytest.approx(1)
            for head in heads:
                assert head.volume.values.sum() == pytest.approx(1, abs=1e-5)
                assert not head.volume.values[~head.window].any()
                assert head.window[cell]


def test_the_probe_leaves_no_hooks_and_looks_past_those_of_others(replay, probe):
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in replay.network.modules())
    place, cell = GateId("encoder", 2, 1, "fixed"), (1, 1, 0)
    before = [head.head for head in probe.at(place, cell)]
    with changed_gates(
        replay.network, [Intervention("silence", before[0], "encoder")], replay.grid
    ):
        assert [head.head for head in probe.at(place, cell)] == before


def test_windows_are_those_of_a_slow_reading(replay, probe):
    """A window holds the tokens with the same quotient by its size, the shift taken off first, and
    no farther ones.
    """
    (d, h, w), size = replay.grid.coarsen(4).shape, (2, 3, 2)
    grids = {1: (d, h, w), 2: replay.grid.coarsen(8).shape}
    padded = {1: replay_padded(replay, 4), 2: replay_padded(replay, 8)}
    for layer, block in ((1, 0), (2, 0), (2, 1)):
        window = [min(n, s) for n, s in zip(padded[layer], size, strict=True)]
        shift = [
            s // 2 if block % 2 and n > s else 0 for n, s in zip(padded[layer], window, strict=True)
        ]
        full = [-(-n // s) * s for n, s in zip(padded[layer], window, strict=True)]
        for cell in np.ndindex(grids[layer]):
            expected = np.zeros(grids[layer], bool)
            for other in np.ndindex(grids[layer]):
                parts = zip(cell, other, shift, full, window, strict=True)
                expected[other] = all(
                    ((a - s) % f) // n == ((b - s) % f) // n and abs(a - b) < n
                    for a, b, s, f, n in parts
                )
            found = probe.at(GateId("encoder", layer, block, "moving"), cell)[0].window
            np.testing.assert_array_equal(found, expected)


def replay_padded(replay, stride):
    coarsest = replay.network.config.stride
    return tuple(-(-n // coarsest) * coarsest // stride for n in replay.grid.shape)


def test_the_heads_are_those_that_the_gate_chose(replay, probe):
    _, routing = replay.run()
    for record in routing.select(part="encoder"):
        place = GateId("encoder", record.layer, record.block, record.image)
        for cell in np.ndindex(*record.routing.experts.shape[2:]):
            heads = probe.at(place, cell)
            assert [head.head for head in heads] == record.routing.experts[
                (0, slice(None), *cell)
            ].tolist()
            weights = record.routing.weights[(0, slice(None), *cell)].tolist()
            assert [head.weight for head in heads] == pytest.approx(weights)


@pytest.mark.parametrize(
    ("place", "cell", "says"),
    [
        (GateId("encoder", 1, 5, "fixed"), (0, 0, 0), "is not an encoder block"),
        (GateId("decoder", 1, direction="x"), (0, 0, 0), "is not an encoder block"),
        (GateId("encoder", 1, 0, "fixed"), (0, 99, 0), "Token indices of"),
    ],
)
def test_what_is_not_there_is_refused(probe, place, cell, says):
    with pytest.raises(InputError, match=says):
        probe.at(place, cell)


def test_plain_attention_has_no_chosen_heads(pair):
    network = SHMoAReg(SHMoARegConfig.preset("tiny", attention="mha"))
    with pytest.raises(InputError, match="plain attention"):
        AttentionProbe.of(Replay.of(pair, network, settings={"size": 20}))
