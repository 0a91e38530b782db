"""Weights, config and card in one file, and what is refused."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import checkpoint, load_network, read_card, save_network, shipped_weights
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

CARD = {"data": "made shapes", "steps": 12, "figures": {"dice": [0.5, 0.7]}}


@pytest.fixture(scope="module")
def network() -> SHMoAReg:
    torch.manual_seed(4)
    return SHMoAReg(SHMoARegConfig.preset("tiny", top_k=3))


def images():
    return torch.rand(2, 1, 1, 16, 24, 12, generator=torch.Generator().manual_seed(1))


def test_a_loaded_network_gives_the_same_displacement(tmp_path, network):
    save_network(network, tmp_path / "n.safetensors", card=CARD)
    back = load_network(tmp_path / "n.safetensors")
    assert back.config == network.config and not back.training
    with torch.no_grad():
        assert torch.equal(back(*images()).displacement, network.eval()(*images()).displacement)
    assert read_card(tmp_path / "n.safetensors") == CARD
    assert os.listdir(tmp_path) == ["n.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, network):
    save_network(network, tmp_path / "full.safetensors", card=CARD)
    save_network(network, tmp_path / "half.safetensors", card=CARD, half=True)
    sizes = [
        sum(t.nbytes for t in load_file(tmp_path / f"{n}.safetensors").values())
        for n in ("full", "half")
    ]
    assert sizes[1] < 0.55 * sizes[0]
    back = load_network(tmp_path / "half.safetensors")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    for ours, theirs in zip(network.parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_unknown_weights_list_the_shipped_ones(tmp_path, network, monkeypatch):
    monkeypatch.setattr("napari_shmoareg.io.model_card.SHIPPED", tmp_path)
    save_network(network, tmp_path / "little.safetensors", card=CARD)
    assert shipped_weights() == ["little"]
    with pytest.raises(
        InputError, match=r"no weights 'large': neither a file nor shipped \(little\)"
    ):
        load_network("large")
    assert load_network("little").config == network.config
    assert read_card("little") == CARD


def test_shipped_weights_are_checked_against_their_checksum(tmp_path, network, monkeypatch):
    monkeypatch.setattr("napari_shmoareg.io.model_card.SHIPPED", tmp_path)
    save_network(network, tmp_path / "little.safetensors", card=CARD)
    digest = hashlib.sha256((tmp_path / "little.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  little.safetensors\n", encoding="utf-8")
    load_network("little")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  little.safetensors\n", encoding="utf-8")
    with pytest.raises(InputError, match="checksum differs"):
        load_network("little")


def test_weights_of_another_shape_are_refused(tmp_path, network):
    save_network(network, tmp_path / "n.safetensors", card=CARD)
    _, tensors = checkpoint.read_tensors(tmp_path / "n.safetensors", checkpoint.FORMAT)
    other = SHMoAReg(SHMoARegConfig.preset("tiny", embed_dim=16))
    with pytest.raises(InputError, match=r"do not fit .* differences, such as .*has the shape"):
        checkpoint.load_weights(other, tensors, tmp_path / "n.safetensors")
    tensors.pop(next(iter(tensors)))
    with pytest.raises(InputError, match=r"1 differences, such as .* is missing"):
        checkpoint.load_weights(network, tensors, tmp_path / "n.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, network, keep):
    save_network(network, tmp_path / "n.safetensors", card=CARD)
    whole = (tmp_path / "n.safetensors").read_bytes()
    (tmp_path / "n.safetensors").write_bytes(
        whole[: int(keep if keep > 1 or keep == 0 else keep * len(whole))]
    )
    with pytest.raises(InputError, match=r"bytes"):
        load_network(tmp_path / "n.safetensors")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["n.pth", "n.pt", "n.safetensors", "n.weights"])
@pytest.mark.parametrize("torch_format", [True, False])
def test_a_pickle_is_refused_and_never_opened(tmp_path, name, torch_format):
    trap = Trap(tmp_path / "sprung")
    if torch_format:
        torch.save({"model": trap}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(trap))
    with pytest.raises(InputError, match=r"is a pickle.*weights_only=True.*save_network"):
        load_network(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_weights_whose_header_begins_like_a_pickle_are_read(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    for letters in range(0, 256, 8):  # the header's length, which comes first, grows by 8
        save_network(network, path, card={"note": "x" * letters})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == pickle.PROTO
    assert load_network(path).config == network.config


def test_a_foreign_safetensors_and_plain_text_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        InputError, match=r"safetensors file, but not 'shmoareg-1' \(it says: nothing\)"
    ):
        load_network(tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is text", encoding="utf-8")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_network(tmp_path / "text.safetensors")


def test_a_config_of_a_later_version_is_refused(tmp_path, network):
    tensors = {n: t.clone() for n, t in network.state_dict().items()}
    for config in ('{"new_idea": 3}', "not json", "[1]"):
        save_file(
            tensors,
            tmp_path / "n.safetensors",
            metadata={"format": checkpoint.FORMAT, "config": config},
        )
        with pytest.raises(InputError, match="not known to this version"):
            load_network(tmp_path / "n.safetensors")


def test_weights_that_are_not_numbers_are_neither_written_nor_read(tmp_path):
    network = SHMoAReg(SHMoARegConfig.preset("tiny"))
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite weights"):
        save_network(network, tmp_path / "n.safetensors", card={})
    assert os.listdir(tmp_path) == []
    tensors = {n: t.clone() for n, t in network.state_dict().items()}
    config = '{"embed_dim": 8}'
    with pytest.raises(InputError, match="NaN or infinite weights"):
        checkpoint.load_weights(network, tensors, tmp_path / config)


def test_a_card_that_json_cannot_hold_and_another_ending_are_refused(tmp_path, network):
    with pytest.raises(InputError, match="plain JSON"):
        save_network(network, tmp_path / "n.safetensors", card={"x": torch.zeros(1)})
    with pytest.raises(InputError, match=r"end in .safetensors"):
        save_network(network, tmp_path / "n.pth", card={})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_told(tmp_path, network):
    save_network(network, tmp_path / "n.safetensors", card=CARD)
    with pytest.raises(InputError, match="'cuda' cannot be used here"):
        load_network(tmp_path / "n.safetensors", device="cuda")
