"""The network of the paper: tensors only."""

from napari_shmoareg.model.config import SHMoARegConfig
from napari_shmoareg.model.network import NetworkOutput, SHMoAReg
from napari_shmoareg.model.routing import RoutedLayer, Routing, RoutingTrace

__all__ = ["NetworkOutput", "RoutedLayer", "Routing", "RoutingTrace", "SHMoAReg", "SHMoARegConfig"]
