"""One registration, from layers to layers, off the GUI thread."""

from __future__ import annotations

import gc
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_shmoareg.engine.interruption import Interrupted, interruptible
from napari_shmoareg.engine.phases import placed, registering
from napari_shmoareg.geometry import InputError, Volume, VolumePair
from napari_shmoareg.widgets.cancelling import Cancellable
from napari_shmoareg.widgets.placement import volume_of
from napari_shmoareg.widgets.register.settings import LABELS, SMALLEST, Settings

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_shmoareg.analysis.scene import Scene
    from napari_shmoareg.engine.registration import Registration

EARLY = 0.08  # share of the work before which the time left is anyone's guess
OPTION = re.compile(r"--([a-z-]+)( [\w.|]+)?(?: \(in Python: [^)]*\))?")
NAN = re.compile(r"Give --nan 0 \(in Python: nan=0\.0\) to read them as [^,]*, or mend the (image|map)\.")


class Status(NamedTuple):
    """Where a job is: what people read, how far the whole is (0 to 1), seconds left or None."""

    title: str
    done: float
    left: float | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job came to: a scene with its layers, or an error in plain words, or neither, if it was cancelled.

    Attributes
    ----------
    number : int
    scene : Scene or None
    layers : list of (data, options, type)
        Bottom first.
    error : str
    notes : list of str
        What was done to the inputs that a person should know.
    """

    number: int
    scene: Scene | None = None
    layers: list[Any] = field(default_factory=list)
    error: str = ""
    notes: list[str] = field(default_factory=list)


class Job(Cancellable):
    """Reads the layers, registers them, measures, and makes the layers of the result.

    Parameters
    ----------
    layers : mapping of role to Layer
        "moving", "fixed", "moving_labels", "fixed_labels"; labels may be left out.
    settings : Settings
    number : int
        Of the registration, for the names of its layers.
    before : callable
        Called first, in the worker's thread: waits for what is still being loaded.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        settings: Settings,
        number: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.number, self._layers, self._settings, self._before = number, dict(layers), settings, before
        self._parts, self._longest, self._held = registering(settings.refine), 0, 0
        self._began = time.perf_counter()
        self._reached = ("starting", 0.0, self._began)

    def __repr__(self) -> str:
        return f"registration #{self.number}"  # where napari asks whether to close its window

    def __call__(self) -> Outcome:
        """As `run`."""
        return self.run()

    @property
    def status(self) -> Status:
        """Where it is now, from any thread."""
        title, done, at = self._reached
        if done < EARLY:
            return Status(title, done, None)
        left = (at - self._began) * (1 - done) / done - (time.perf_counter() - at)
        return Status(title, done, max(0.0, left))

    def run(self) -> Outcome:
        """Do it.  Never raises: what went wrong is in the outcome."""
        gc.freeze()  # or the collector would stop viewer and work for a third of a second, to look at all of torch
        try:
            self._tell("loading", 0.0)
            self._before()
            self._held = _cuda_memory()
            outcome = self._register()
        except Interrupted:
            outcome = Outcome(self.number)
        except Exception as error:
            outcome = Outcome(self.number, error=explain(error, self._longest))
        finally:
            gc.unfreeze()
        self._layers.clear()
        _release_cuda(self._held)
        return outcome

    def _register(self) -> Outcome:
        from napari_shmoareg.analysis.expert_load import ExpertLoad
        from napari_shmoareg.analysis.quality import measure
        from napari_shmoareg.analysis.scene import Scene
        from napari_shmoareg.io.summary import build_report
        from napari_shmoareg.widgets.layers import layers_of

        self._tell("reading", 0.0)
        pair, notes = _read(self._layers)
        weights, registration = self._deform(pair)
        self._tell("measuring", 0.0)
        quality = measure(registration)
        self._tell("measuring", 0.4)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        report = build_report(registration, quality, load, weights=weights)
        scene = Scene.of(registration, report, weights=Path(weights).stem)
        self._tell("drawing", 0.6)
        layers = layers_of(scene, self.number)
        self._tell("drawing", 1.0)
        return Outcome(self.number, scene, layers, notes=notes)

    def _deform(self, pair: VolumePair) -> tuple[str, Registration]:
        """The name of the weights, and the registration; the network itself is gone at the end."""
        from napari_shmoareg.engine.registration import SIZE, register
        from napari_shmoareg.io.checkpoint import load_network
        from napari_shmoareg.io.weights import NO_NETWORK, chosen_device, chosen_weights

        asked, device = self._settings, chosen_device(self._settings.device)
        network, weights, why = None, NO_NETWORK, "none, as requested"
        if asked.weights != NO_NETWORK:
            weights, why = chosen_weights(asked.weights, device)
            network = load_network(weights, device=device)
        size = asked.size if asked.size is not None else SIZE if network is None else network.config.size
        self._longest = size if isinstance(size, int) else max(pair.fixed.grid.shape)
        with nullcontext() if network is None else interruptible(network, self.check):
            registration = register(
                pair,
                network,
                affine=asked.affine,
                size=asked.size,
                diffeomorphic=asked.diffeomorphic,
                device=device,
                refine=asked.refine,
                similarity=asked.similarity,
                contrast=asked.contrast,
                smoothness=asked.smoothness,
                keep=asked.keep,
                progress=self._tell,
            )
        return weights, replace(registration, choices={"weights": why, **registration.choices})

    def _tell(self, phase: str, fraction: float) -> None:
        self.check()
        title, done = placed(self._parts, phase, fraction)
        self._reached = title, max(done, self._reached[1]), time.perf_counter()


def explain(error: Exception, size: int = 0) -> str:
    """An error in plain words, for people who see a form and not a command line; `size` is what it was run at."""
    if isinstance(error, InputError):
        return in_words_of_the_form(str(error))
    notes = getattr(error, "__notes__", ())
    where = f", {notes[0]}" if notes else ""
    if where and (isinstance(error, MemoryError) or "allocate memory" in str(error)):
        return f"The memory ran out{where}. Close other programs and layers, or open a smaller file."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        such = f" ({max(SMALLEST, size * 3 // 4)} voxels instead of {size}, say)" if size > SMALLEST else ""
        return f"The memory ran out. Choose a smaller Size{such}, or close other programs and layers."
    logging.getLogger(__name__).error("a registration failed", exc_info=error)
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return (
        f"Something went wrong inside shmoareg{where} ({said}). This is a bug, not your mistake: "
        "please report it with what the terminal says."
    )


def in_words_of_the_form(text: str) -> str:
    """A text with the names of the form's rows where it speaks of options of the command line."""
    told = NAN.sub(r"Replace them first: `layer.data = numpy.nan_to_num(layer.data)` in the console.", text)
    return OPTION.sub(lambda match: f"'{LABELS.get(match[1], match[1])}'{match[2] or ''}", told)


def _read(layers: Mapping[str, Layer]) -> tuple[VolumePair, list[str]]:
    """The pair that layers show, labels brought onto their images' grids; and what was done for that."""
    from napari_shmoareg.geometry.resample import resample

    volumes = {role: volume_of(layer) for role, layer in layers.items()}
    notes: list[str] = []
    found: dict[str, Volume] = dict(volumes)
    for role in ("moving", "fixed"):
        labels, image = volumes.get(f"{role}_labels"), volumes[role]
        if labels is not None and not labels.grid.same_space(image.grid):
            found[f"{role}_labels"] = resample(labels, image.grid)
            notes.append(
                f"The labels '{labels.name}' stand on another grid than their image '{image.name}': they were taken "
                "onto it by nearest neighbour."
            )
    return VolumePair(**found), notes


def _cuda_memory() -> int:
    """Bytes in use on a CUDA device, 0 without one; does not load torch for that."""
    return 0 if (cuda := _cuda()) is None else cuda.memory_allocated()


def _release_cuda(held: int) -> None:
    """Give the device's memory back to other programs."""
    if _cuda_memory() > held:
        gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def _cuda() -> Any:
    """``torch.cuda`` where it is in use; a torch that is only half loaded has none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if getattr(cuda, "is_initialized", bool)() else None
