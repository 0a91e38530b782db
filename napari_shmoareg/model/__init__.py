"""The SHMoAReg network; works on tensors only."""

from napari_shmoareg.model.config import SHMoARegConfig
from napari_shmoareg.model.network import NetworkOutput, SHMoAReg
from napari_shmoareg.model.routing import GateId, RoutedLayer, Routing, RoutingTrace

__all__ = [
    "GateId",
    "NetworkOutput",
    "RoutedLayer",
    "Routing",
    "RoutingTrace",
    "SHMoAReg",
    "SHMoARegConfig",
]
