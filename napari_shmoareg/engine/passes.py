"""In how many passes weights register after they were fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig


def passes_after(
    config: SHMoARegConfig, settings: FineTuning, *, learned: Sequence[int], used: Sequence[int]
) -> tuple[tuple[float, ...], str]:
    """The passes of the weights to be, and why.

    Ours: a cascade's coarse passes serve grids finer than those that the network learns on.  Where it learns at the
    resolution at which it will register, and in one pass, earlier passes see grids that nothing prepared them for.

    Parameters
    ----------
    config : SHMoARegConfig
        Of the weights that learning begins with.
    settings : FineTuning
        Its passes and cascade.
    learned, used : (D, H, W)
        Network grids of the same pair, in learning and in a registration.

    Returns
    -------
    passes : tuple of float
        As in `SHMoARegConfig`.
    reason : str
    """
    before = config.passes
    told = ", ".join(f"{share:g}" for share in before)
    if len(before) == 1:
        return before, "one pass, as the network had it"
    if settings.passes == "keep":
        return before, f"passes at {told}, as asked for"
    if settings.passes == "one":
        return (1.0,), "one pass, as asked for"
    if settings.cascade > 0:
        return before, f"passes at {told}: the cascade was learned with them"
    if tuple(learned) == tuple(used):
        return (1.0,), f"one pass: it learns on the grids that it registers on, such as {tuple(used)}"
    return before, f"passes at {told}: it learns on coarser grids {tuple(learned)} than {tuple(used)}"


def with_passes(network: SHMoAReg, passes: Sequence[float]) -> SHMoAReg:
    """The same weights in a network of other passes, on the same device; the network itself where nothing changes."""
    passes = tuple(float(share) for share in passes)
    if network.config.passes == passes:
        return network
    other = SHMoAReg(replace(network.config, passes=passes))
    other.load_state_dict(network.state_dict())
    return other.to(next(network.parameters()).device).train(network.training)
