"""Which device is fast at bfloat16, and that learning asks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration import resources as devices
from napari_shmoareg.registration.resources import choose_bfloat16
from napari_shmoareg.training import step
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import loss_of
from napari_shmoareg.training.synthesis import SyntheticPairs
from napari_shmoareg.training.synthesis_settings import SynthesisSettings


@pytest.fixture
def machine(monkeypatch):
    """Another CPU or GPU than this one, as PyTorch would describe it."""
    devices._is_fast_at_bfloat16.cache_clear()

    def other(*, flags=(), onednn=True, capability=None, hip=None, table=True):
        monkeypatch.setattr(devices, "torch", FakeTorch(flags, onednn, capability, hip, table))
        return "cpu" if capability is None else torch.device("cuda:1")

    yield other
    devices._is_fast_at_bfloat16.cache_clear()


class FakeTorch:
    """What `registration.resources` asks of PyTorch."""

    def __init__(self, flags, onednn, capability, hip, table):
        self.device = torch.device
        probes = {
            "_is_amx_tile_supported": lambda: "amx_bf16" in flags,
            "_is_avx512_bf16_supported": lambda: "avx512_bf16" in flags,
        }
        if table:
            probes = {"get_capabilities": lambda: {flag: True for flag in flags} | {"avx2": True}}
        self.cpu = SimpleNamespace(**probes)
        self.backends = SimpleNamespace(
            mkldnn=SimpleNamespace(is_available=lambda: onednn, enabled=True)
        )
        self.ops = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: onednn))
        self.version = SimpleNamespace(hip=hip)
        self.cuda = SimpleNamespace(
            get_device_name=lambda device: f"GPU {device.index}",
            get_device_capability=lambda device: capability,
        )


@pytest.mark.parametrize(
    ("about", "used", "why"),
    [
        ({}, False, "neither AVX-512 BF16 nor AMX"),
        # oneDNN would emulate it
        ({"flags": ("avx512_f", "avx512_bw")}, False, "neither AVX-512 BF16 nor AMX"),
        ({"flags": ("avx512_bf16",)}, True, "this CPU has AVX-512 BF16"),
        ({"flags": ("avx512_bf16", "amx_bf16")}, True, "this CPU has AMX"),
        ({"flags": ("avx512_bf16",), "table": False}, True, "this CPU has AVX-512 BF16"),
        ({"table": False}, False, "neither AVX-512 BF16 nor AMX"),
        ({"flags": ("avx512_bf16",), "onednn": False}, False, "oneDNN does not use it"),
        ({"capability": (7, 5)}, False, "GPU 1 has compute capability 7.5"),
        ({"capability": (8, 0)}, True, "GPU 1 has compute capability 8.0"),
        ({"capability": (12, 0)}, True, "GPU 1 has compute capability 12.0"),
        ({"capability": (7, 0), "hip": "6.2"}, True, "GPU 1 computes in it"),
    ],
)
def test_bfloat16_is_used_where_the_device_is_fast_at_it(about, used, why, machine):
    found, reason = choose_bfloat16("auto", machine(**about))
    assert found is used and why in reason


def test_a_choice_is_obeyed_on_every_device(machine):
    slow = machine()
    assert choose_bfloat16("on", slow) == (True, "as requested")
    devices._is_fast_at_bfloat16.cache_clear()
    fast = machine(flags=("amx_bf16",))
    assert choose_bfloat16("off", fast) == (False, "as requested")


def test_a_device_of_another_kind_gets_float32():
    assert choose_bfloat16("auto", "meta") == (False, "not known to be fast on meta")


def test_this_cpu_is_described_as_pytorch_has_it():
    devices._is_fast_at_bfloat16.cache_clear()
    used, _ = choose_bfloat16("auto", "cpu")
    named = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert used == (named and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.parametrize(
    ("choice", "fast", "wanted"),
    [("auto", True, True), ("auto", False, False), ("on", False, True)],
)
def test_a_step_computes_in_the_precision_that_was_chosen(choice, fast, wanted, monkeypatch):
    monkeypatch.setattr(devices, "_is_fast_at_bfloat16", lambda device: (fast, "said so"))
    seen = []
    true_loss = step.total_loss

    def total_loss(output, *rest):
        seen.append(output.displacement.dtype)
        return true_loss(output, *rest)

    monkeypatch.setattr(step, "total_loss", total_loss)
    torch.manual_seed(0)
    network = SHMoAReg(SHMoARegConfig.preset("tiny")).train()
    convolved = []
    network.encoder.register_forward_hook(
        lambda *_: convolved.append(torch.is_autocast_enabled("cpu"))
    )
    drawing = SynthesisSettings(extent=((48.0, 48.0), (64.0, 64.0), (48.0, 48.0)), size=(16, 16))
    pair = SyntheticPairs([], drawing, seed=5)[0]
    settings = FineTuning(bfloat16=choice)
    terms, _ = loss_of(network, pair, settings, np.random.default_rng(0), torch.device("cpu"))
    assert convolved and all(autocast is wanted for autocast in convolved)
    assert seen == [torch.float32] and torch.isfinite(terms.total)


def test_what_was_true_or_false_before_there_was_auto_is_on_or_off():
    assert FineTuning().bfloat16 == "auto"
    assert (
        FineTuning(bfloat16=True).bfloat16 == "on" and FineTuning(bfloat16=False).bfloat16 == "off"
    )
    assert FineTuning(bfloat16=True).to_dict()["bfloat16"] == "on"
    with pytest.raises(InputError, match="bfloat16 must be 'auto', 'on' or 'off'; got 'yes'"):
        FineTuning(bfloat16="yes")
