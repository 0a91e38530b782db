"""A registration of the small oblique pair by a small untrained network."""

from __future__ import annotations

import pytest


@pytest.fixture
def registration(pair, tiny_network):
    """On a network grid of 20 voxels along its longest axis, headers trusted."""
    from napari_shmoareg.registration.register import register

    return register(pair, tiny_network, affine="none", size=20, device="cpu", keep="last")
