"""Checks of what gate choices depend on: sign of the motion, best expert, noise, anatomy.

Ours, beyond the paper.  Like the maps, each check is about the network's last pass.  It covers the
cells with image content in the fixed image, and is compared with chance or an untrained gate.

B batch, N experts, k chosen, *S space (D, H, W), n cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.experts.controls import cells_of, equal_loads, untrained_scores
from napari_shmoareg.experts.gate_edits import IMAGES, cells_in
from napari_shmoareg.geometry import Volume, field
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.model.decoder import Level
from napari_shmoareg.model.gate_sites import GateSite, gates_of
from napari_shmoareg.model.routing import Direction, GateId, Image, Part, choose
from napari_shmoareg.model.shmoe import DIRECTIONS, SHMoE
from napari_shmoareg.registration.cascade import warp_by
from napari_shmoareg.registration.intensity import Intensity
from napari_shmoareg.registration.losses import squared_correlation
from napari_shmoareg.registration.replay import Replay

NOISE = 0.01  # standard deviation, of intensities in [0, 1]
WINDOW = 5  # voxels of a level: edge of the neighbourhood of a local error
# difference in local error between the best and the worst expert; below it none is better
MIN_ERROR_SPREAD = 1e-3
NUM_UNTRAINED = 3  # number of untrained gates, whose information is averaged
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ChoiceCheck:
    """What the choices of one gate depend on; None where a figure does not apply.

    Attributes
    ----------
    part, layer, block, image, direction
        As in `GateId`.
    cells : int
        Cells with image content in the fixed image.
    sign_share : float or None
        Decoder: I(choice; sign) / H(choice), 0 to 1: the share of the choice explained by the sign
        of the residual that the level adds in this direction.  None where all cells choose the
        same expert.
    best_cells : int or None
        Decoder: cells at which the choice of expert makes a difference.
    best_agreement, best_kappa : float or None
        Share of these cells that chose the *counterfactual best* expert: the one whose residual, in
        place of the chosen one's in this direction (with its own T and all else of Eq. 6), gives
        the smallest local error 1 - r^2 (squared correlation over 5^3 voxels of the level).  And
        Cohen's kappa, which is 0 by chance.
    stability : float or None
        Cohen's kappa of the choices with and without noise of 1 % of the intensity range on both
        images, in all passes: 1 is no change, 0 is chance.  For k of N, chance is that of
        independent choices with the same loads.  None where all cells choose the same both times.
    information, untrained_information : float or None
        Mutual information, bits, of the expert of a selection and the label of its cell (fixed
        labels other than 0); and the same for an untrained gate with equal loads (see `Control`),
        mean of three.  The second is not due to learning.  Tokens of the moving image use the
        label at the same location.  None without labels.
    """

    part: Part
    layer: int
    block: int | None
    image: Image | None
    direction: Direction | None
    cells: int
    stability: float | None
    sign_share: float | None = None
    best_cells: int | None = None
    best_agreement: float | None = None
    best_kappa: float | None = None
    information: float | None = None
    untrained_information: float | None = None

    @property
    def gate(self) -> GateId:
        return GateId(self.part, self.layer, self.block, self.image, self.direction)

    @property
    def learned_information(self) -> float | None:
        """Information in excess of the untrained gates, bits."""
        if self.information is None or self.untrained_information is None:
            return None
        return self.information - self.untrained_information


FIGURES = tuple(f.name for f in fields(ChoiceCheck))[5:]


def check_choices(
    replay: Replay, *, seed: int = 0, progress: Callable[[str, float], None] | None = None
) -> list[ChoiceCheck]:
    """Check the choices of every gate of a network on a pair.

    Parameters
    ----------
    replay : Replay
    seed : int
        Seed of the noise and of the untrained gates.
    progress : callable, optional
        Called with the title of the current step and the share of the work that is done.  An
        exception that it raises ends the work.

    Raises
    ------
    TooLargeError
        If the device runs out of memory.
    """
    report = progress or (lambda _title, _done: None)
    report("choices of the gates", 0.0)
    with _GateProbe(replay, seed, report) as found:
        _, routing = replay.run()
    report("choices under noise", 0.8)
    noisy = _with_noise(replay, seed).from_first_pass().run()[1]
    report("choices checked", 1.0)
    checks = []
    for record, other in zip(routing, noisy, strict=True):
        gate, inside = record.gate, found.content(record.stride)
        own, under = (
            one.routing.experts[0].numpy(force=True).astype(np.int64)[:, inside]
            for one in (record, other)
        )
        stability = kappa(own, under, record.num_experts)
        checks.append(
            ChoiceCheck(
                *gate, cells=int(inside.sum()), stability=stability, **found.figures.get(gate, {})
            )
        )
    return checks


def _with_noise(replay: Replay, seed: int) -> Replay:
    """The same pair with Gaussian noise on the network's input."""
    conformed, rng = replay.conformed, torch.Generator().manual_seed(seed)
    moving, fixed = (
        (image + NOISE * torch.randn(image.shape, generator=rng)).clamp(0, 1)
        for image in (conformed.moving, conformed.fixed)
    )
    return replace(replay, conformed=replace(conformed, moving=moving, fixed=fixed))


class _GateProbe:
    """Hooks that observe the last pass without changing it, and collect their results in
    `figures`.
    """

    def __init__(self, replay: Replay, seed: int, progress: Callable[[str, float], None]) -> None:
        self.replay, self.seed, self._progress = replay, seed, progress
        self._steps_done = 0
        self.figures: dict[GateId, dict[str, Any]] = {}
        self._masks: dict[int, NDArray[np.bool_]] = {}
        self._of_cells: dict[int, Ids] = {}
        pair = replay.pair
        shown = Intensity.of(pair.fixed).content(pair.fixed.values)
        self._content_mask = Volume(
            shown.astype(np.uint8), pair.fixed.grid, "content", is_labels=True
        )

    def __enter__(self) -> _GateProbe:
        self._stack = ExitStack()
        network = self.replay.network
        sites = gates_of(network)
        owned = [(n, site) for n, site in enumerate(sites)]
        has_labels = self.replay.pair.fixed_labels is not None
        for number, site in owned if has_labels else ():
            if site.part == "encoder":
                self._stack.callback(
                    site.module.register_forward_hook(self._at_encoder(number, site)).remove
                )
        for level in network.decoder.levels:
            if isinstance(level, Level) and isinstance(level.head, SHMoE):
                level_sites = [(n, site) for n, site in owned if site.owner is level.head]
                if has_labels:
                    self._stack.callback(
                        level.head.register_forward_hook(self._at_decoder(level_sites)).remove
                    )
                self._stack.callback(level.register_forward_hook(self._at_level).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def content(self, stride: int) -> NDArray[np.bool_]:
        """Cells (I, J, K) with image content in the fixed image; all cells if there are none."""
        if stride not in self._masks:
            inside = cells_in(self._content_mask, self.replay.grid, stride)
            self._masks[stride] = inside if inside.any() else np.ones_like(inside)
        return self._masks[stride]

    def _labels(self, stride: int) -> Ids:
        """The fixed label at the centre of each cell, (I, J, K)."""
        labels = self.replay.pair.fixed_labels
        assert labels is not None
        if stride not in self._of_cells:
            self._of_cells[stride] = resample(
                labels, self.replay.grid.coarsen(stride)
            ).values.astype(np.int64)
        return self._of_cells[stride]

    def _report(self, title: str) -> None:
        """Report progress: each gate of the decoder is checked twice."""
        gates = sum(site.part == "decoder" for site in gates_of(self.replay.network))
        self._steps_done += 1
        self._progress(title, 0.2 + 0.5 * self._steps_done / (2 * gates))

    def _store(self, site: GateSite, image: Image | None, **figures: Any) -> None:
        gate = site.gate._replace(image=image)
        self.figures.setdefault(gate, {}).update(figures)

    def _at_encoder(self, number: int, site: GateSite) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            scores = [
                untrained_scores(site, args[0], (self.seed + n, number))
                for n in range(NUM_UNTRAINED)
            ]
            for item, image in enumerate(IMAGES):
                self._store_information(site, image, output[item], [one[item] for one in scores])

        return hook

    def _at_decoder(self, sites: list[tuple[int, GateSite]]) -> Any:
        def hook(module: SHMoE, args: Any, output: tuple[Tensor, Any]) -> None:
            for number, site in sites:
                self._report(f"untrained gates beside decoder layer {site.layer} {site.direction}")
                axis = DIRECTIONS.index(cast(Any, site.direction))
                scores = [
                    untrained_scores(site, args[0], (self.seed + n, number))[0]
                    for n in range(NUM_UNTRAINED)
                ]
                self._store_information(
                    site, None, output[1][axis].probabilities[0].movedim(0, -1), scores
                )

        return hook

    def _store_information(
        self, site: GateSite, image: Image | None, values: Tensor, scores: list[Tensor]
    ) -> None:
        """Store the information on labels of the choice (by values (*S, N)) and of untrained gates
        (by their scores).
        """
        i, j, k = cells_of(self.replay.grid.shape, site.stride)
        labels = self._labels(site.stride).ravel()
        inside = labels != 0
        if not inside.any():
            return
        chosen = choose(values[:i, :j, :k].flatten(0, 2), site.top_k, dim=-1)[1]
        loads = torch.bincount(chosen.flatten(), minlength=site.num_experts)
        bits = [
            mutual_information(ids.T.numpy(force=True)[:, inside], labels[inside])
            for ids in (
                chosen,
                *(equal_loads(s[:i, :j, :k].flatten(0, 2), loads, site.top_k) for s in scores),
            )
        ]
        self._store(
            site, image, information=bits[0], untrained_information=float(np.mean(bits[1:]))
        )

    def _at_level(self, module: Level, args: Any, output: tuple[Tensor, Tensor, list[Any]]) -> None:
        """Compare the choices of a level's three gates with the sign and the best expert."""
        features, below, steps = output[0], args[2], args[3]
        images = self._images(module.stride, features.shape[2:])
        outputs, _ = cast(SHMoE, module.head).convolve(features)
        pieces = [record.residual for record in output[2]]
        start = None if below is None else field.upsample(below, features.shape[2:])
        for axis, record in enumerate(output[2]):
            self._report(f"each expert alone: decoder layer {record.layer} {record.direction}")
            inside = torch.from_numpy(self.content(module.stride))
            i, j, k = inside.shape
            chosen = record.routing.experts[0, 0, :i, :j, :k].cpu()[inside].numpy()
            sign = (pieces[axis][0, 0, :i, :j, :k].cpu()[inside] > 0).numpy().astype(np.int64)
            errors = []
            for expert in range(record.num_experts):
                residual = (
                    record.routing.probabilities[:, expert : expert + 1]
                    * outputs[axis][:, expert : expert + 1]
                )
                step = torch.cat([*pieces[:axis], residual, *pieces[axis + 1 :]], dim=1)
                step = step if steps is None else field.integrate(step, steps)
                whole = step if start is None else field.compose(start, step)
                warped = field.warp(images[0], whole, padding="border")
                error = 1 - squared_correlation(warped, images[1], WINDOW)
                errors.append(error[0, 0, :i, :j, :k].cpu()[inside].numpy())
            table = np.stack(errors)
            relevant = table.max(axis=0) - table.min(axis=0) > MIN_ERROR_SPREAD
            found: dict[str, Any] = {
                "sign_share": share_explained(chosen, sign),
                "best_cells": int(relevant.sum()),
            }
            if relevant.any():
                best, own = table.argmin(axis=0)[relevant], chosen[relevant]
                found |= {"best_agreement": float((best == own).mean())}
                found |= {"best_kappa": kappa(own[None], best[None], record.num_experts)}
            gate = GateId("decoder", record.layer, None, None, record.direction)
            self.figures.setdefault(gate, {}).update(found)

    def _images(self, stride: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Moving and fixed image of the last pass on a level's padded grid."""
        replay, device = self.replay, next(self.replay.network.parameters()).device
        start = None if replay.start is None else replay.start.to(device)
        images = torch.cat(
            [
                warp_by(replay.conformed.moving.to(device), start),
                replay.conformed.fixed.to(device),
            ]
        )
        pads = [stride * n - m for n, m in zip(shape, images.shape[2:], strict=True)]
        images = F.pad(images, (0, pads[2], 0, pads[1], 0, pads[0]), mode="replicate")
        moving, fixed = F.avg_pool3d(images, stride).chunk(2)
        return moving, fixed


def kappa(one: Ids, other: Ids, experts: int) -> float | None:
    """Cohen's kappa of choices (k, n) of N experts: 1 for full agreement, 0 for chance.

    For k of N, the agreement is the mean share of the k experts that both chose; chance is that of
    independent choices with the same loads.  None where chance already gives full agreement (all
    cells chose the same)."""
    k, n = one.shape
    masks = [np.zeros((experts, n), dtype=bool) for _ in range(2)]
    for mask, ids in zip(masks, (one, other), strict=True):
        np.put_along_axis(mask, ids, True, axis=0)
    agreed = float((masks[0] & masks[1]).sum() / (k * n))
    chance = float((masks[0].mean(axis=1) * masks[1].mean(axis=1)).sum() / k)
    return (agreed - chance) / (1 - chance) if chance < 1 else None


def mutual_information(chosen: Ids, labels: Ids) -> float:
    """Mutual information, bits, of the chosen experts (k, n) and the labels (n,) of their cells."""
    joint = _joint(chosen, np.broadcast_to(labels, chosen.shape))
    return max(0.0, _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)) - _entropy(joint))


def share_explained(chosen: Ids, sign: Ids) -> float | None:
    """I(choice; sign) / H(choice), 0 to 1; None where all cells chose the same expert."""
    entropy = _entropy(np.bincount(chosen))
    return mutual_information(chosen[None], sign) / entropy if entropy > 0 else None


def _joint(a: Ids, b: Ids) -> Ids:
    """Joint counts of two arrays of values."""
    (_, a), (_, b) = (np.unique(values, return_inverse=True) for values in (a.ravel(), b.ravel()))
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    return np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns)


def _entropy(counts: NDArray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def mean_checks(checks: Iterable[ChoiceCheck], *, by_layer: bool = False) -> list[ChoiceCheck]:
    """Average the checks of several pairs per gate, or per encoder layer; cells are summed.

    Missing figures are left out of the means.
    """
    groups: dict[GateId, list[ChoiceCheck]] = {}
    for check in checks:
        gate = check.gate._replace(block=None, image=None) if by_layer else check.gate
        groups.setdefault(gate, []).append(check)
    return [ChoiceCheck(*gate, **_means(group)) for gate, group in groups.items()]


def _means(group: Sequence[ChoiceCheck]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = [v for check in group if (v := getattr(check, name)) is not None and v == v]
        if name in ("cells", "best_cells"):
            found[name] = sum(values) if values else None
        else:
            found[name] = float(np.mean(values)) if values else None
    return found
