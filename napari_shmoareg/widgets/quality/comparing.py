"""Ways to compare a registration's images in the viewer: begun, changed, and undone without a trace."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from napari_shmoareg.widgets.quality.preparing import Prepared
from napari_shmoareg.widgets.showing import layer_of

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Layer

COLOURS = ("green", "magenta")  # of the fixed and of the other image


class Comparison:
    """One comparison that a viewer shows; the looks of before are the caller's to keep and put back.

    Parameters
    ----------
    viewer : Viewer
    prepared : Prepared
    amount : float
        Share of the other image in a blend or of two colours; edge of a tile in mm; place of a swipe's edge,
        0 to 1 from the left of the screen.
    """

    def __init__(self, viewer: Viewer, prepared: Prepared, amount: float) -> None:
        from napari.layers import Image

        self._viewer, self.prepared, self.amount = weakref.ref(viewer), prepared, amount
        self.images = {name: layer_of(viewer, prepared.scene, prepared.number, name) for name in ("fixed", "after")}
        fixed = self.images["fixed"]
        self._next = 0 if fixed is None else viewer.layers.index(fixed) + 1
        self.added: list[Layer] = []
        for name, (data, options) in prepared.extra.items():
            like = self.images["after"] if name != "fixed" else None
            if like is not None:
                options = options | {"contrast_limits": like.contrast_limits, "colormap": like.colormap}
            self.images[name] = self._add(Image(data, **options))
        self.show()

    @property
    def viewer(self) -> Viewer:
        """Where it is shown; held weakly."""
        viewer = self._viewer()
        assert viewer is not None, "the viewer is gone"
        return viewer

    def show(self) -> None:
        """Make the viewer show it."""

    def set_amount(self, amount: float) -> None:
        """Blend otherwise, make other tiles, or move the edge."""
        self.amount = amount

    def end(self) -> None:
        """Remove what was added."""
        for layer in self.added:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)

    @property
    def whole(self) -> bool:
        """Whether all layers that it shows are still in the viewer."""
        return all(layer in self.viewer.layers for layer in self._shown())

    def _shown(self) -> list[Layer]:
        fixed, other = self.images["fixed"], self.images[self.prepared.stage]
        return [layer for layer in (fixed, other) if layer is not None]

    def _add(self, layer: Image) -> Image:
        """Put a layer into the viewer just above the fixed image, below what is laid over it."""
        self.viewer.layers.insert(self._next, layer)
        self._next += 1
        self.added.append(layer)
        return layer

    def _only(self, shown: list[Layer], *, overlays: bool) -> None:
        """Show some layers and no other image; outlines, points, grids and arrows stay, if `overlays`."""
        for layer in self.viewer.layers:
            filled = layer._type_string == "image" or (layer._type_string == "labels" and layer.contour == 0)
            if layer in shown:
                layer.visible = True
            elif filled or not overlays:
                layer.visible = False


class Mixed(Comparison):
    """Fixed and other image laid over one another: the upper one transparent, or each in a colour of its own."""

    def show(self) -> None:
        """Show the two."""
        fixed, other = self._both()
        self._only([fixed, other], overlays=True)
        self._lower, self._upper = sorted((fixed, other), key=self.viewer.layers.index)
        coloured = self.prepared.mode == "two colours"
        if coloured:
            fixed.colormap, other.colormap = COLOURS
        self._lower.blending, self._upper.blending = "translucent_no_depth", "additive" if coloured else "translucent"
        self.set_amount(self.amount)

    def set_amount(self, amount: float) -> None:
        """The other image's share: 0 shows the fixed one alone, 1 the other one alone."""
        super().set_amount(amount)
        fixed, other = self._both()
        if self.prepared.mode == "two colours":
            fixed.opacity, other.opacity = min(1.0, 2 * (1 - amount)), min(1.0, 2 * amount)
            return
        self._lower.opacity = 1.0
        self._upper.opacity = amount if self._upper is other else 1 - amount

    def _both(self) -> tuple[Image, Image]:
        fixed, other = self._shown()
        return fixed, other


class Beside(Comparison):
    """Fixed image, moving image on its grid, and warped image in cells of their own, with one camera."""

    def show(self) -> None:
        """Show the cells, named, in one row."""
        for layer in self._shown():
            layer.name_overlay.visible = True
            layer.opacity = 1.0
        self._only(self._shown(), overlays=False)
        camera, grid = self.viewer.scene.camera, self.viewer.canvas.grid
        centre, zoom = camera.center, camera.zoom
        whole = []  # zoom at which all is seen, without cells and with them
        for enabled in (False, True):
            grid.stride, grid.shape, grid.enabled = 1, (1, -1), enabled
            self.viewer.reset_view()
            whole.append(camera.zoom)
        camera.center, camera.zoom = centre, zoom * whole[1] / whole[0]

    def _shown(self) -> list[Layer]:
        return [layer for layer in self.images.values() if layer is not None]
