"""Recipes for training on synthetic pairs, as a data set of a run.

Coarse grids come first: steps are cheap there and teach most of what concerns large displacements.
The network is fully convolutional, so the weights carry over to finer grids.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import check_fields
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.training.expert_training import expert_config
from napari_shmoareg.training.settings import FineTuning, RunSettings
from napari_shmoareg.training.synthesis import Subject, SyntheticPairs, read_subjects
from napari_shmoareg.training.synthesis_settings import SynthesisSettings

VALIDATION_SIZE = 80  # maximum number of voxels along the longest axis
VALIDATION_SHARE = 0.25  # share of the subjects used for validation only


@dataclass(frozen=True)
class Phase:
    """One resolution of a recipe: the share of steps at which it begins, and the range of voxels
    along the longest axis.
    """

    begins: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """All settings of a pretraining run, besides the label maps.

    Parameters
    ----------
    preset : str
        Of `SHMoARegConfig.preset`.
    phases : tuple of Phase
        In the order of `begins`, the first at 0.
    settings : FineTuning
    drawing : SynthesisSettings
        Its size is replaced by that of the phase.
    averaging : float
        Decay of the running mean of the weights, which is the result.
    config : mapping
        Fields of `SHMoARegConfig` that differ from the preset.
    """

    preset: str
    phases: tuple[Phase, ...]
    settings: FineTuning
    drawing: SynthesisSettings
    averaging: float = 0.99
    config: Mapping[str, Any] = field(default_factory=dict)

    def network_config(self) -> SHMoARegConfig:
        """The config of the network to train.

        Raises
        ------
        InputError
            If a value is out of range.
        """
        try:
            config = SHMoARegConfig.from_dict(
                SHMoARegConfig.preset(self.preset).to_dict() | dict(self.config)
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"The network config is not valid: {error}") from error
        return expert_config(config, self.settings)

    def pairs(
        self, subjects: Sequence[Subject], device: str | torch.device = "cpu"
    ) -> SyntheticPairs:
        """Training pairs, generated on the device from all but the held-out subjects."""
        phases = [
            (round(p.begins * self.settings.steps), replace(self.drawing, size=p.size))
            for p in self.phases
        ]
        learners, motion = split_subjects(subjects)[0], self.settings.uses_known_motion
        return SyntheticPairs(
            learners, phases, seed=self.settings.seed, device=device, motion=motion
        )


@dataclass(frozen=True)
class SyntheticChoice:
    """The data set of a run on synthetic pairs, as `DatasetChoice` is that of a run on scans.

    Attributes
    ----------
    path : str
        Folder of label maps; empty without.
    recipe : Recipe
        Its settings are those of the run.
    """

    path: str
    recipe: Recipe

    def open(self) -> list[Subject]:
        """Read the label maps.

        Raises
        ------
        InputError
            If there are none in the folder.
        """
        return read_subjects(self.path) if self.path else []

    @property
    def options(self) -> dict[str, Any]:
        """The recipe, without the settings."""
        return {"recipe": {k: v for k, v in asdict(self.recipe).items() if k != "settings"}}

    @property
    def content(self) -> str:
        """What the pairs show, in words."""
        kinds = ["label maps"] * bool(self.path)
        kinds += ["synthetic torsos"] * (self.recipe.drawing.torso > 0)
        return f"{', '.join(kinds)} and random shapes"


def recipe_of(values: Mapping[str, Any], settings: FineTuning) -> Recipe:
    """The recipe of the options of a `SyntheticChoice`, read from JSON.

    Raises
    ------
    ValueError, TypeError, KeyError
        If they are damaged.
    """
    phases, drawing = values["phases"], values["drawing"]
    for kind, part in ((SynthesisSettings, drawing), *((Phase, phase) for phase in phases)):
        check_fields(kind, part)
    drawn = SynthesisSettings(**{name: _with_tuples(value) for name, value in drawing.items()})
    return Recipe(
        preset=str(values["preset"]),
        phases=tuple(Phase(phase["begins"], tuple(phase["size"])) for phase in phases),
        settings=settings,
        drawing=drawn,
        averaging=float(values["averaging"]),
        config=dict(values.get("config", {})),
    )


def _with_tuples(value: Any) -> Any:
    """JSON lists as tuples."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


RUN = RunSettings(
    affine="none", validate_every=400, validation_pairs=6, save_every=100, tensorboard=False
)
_LEARNING = FineTuning(
    learning_rate=1e-3,
    final_rate=5e-5,
    balance_heads=True,
    inverse_weight=0.05,
    balance_weight=0.05,
    smoothness_weight=0.3,
    similarity="lncc",
    similarity_weight=0.5,
    overlap_weight=1.0,
    diffeomorphic=0.25,
    largest_gradient=1.0,
    seed=1,
)

RECIPES: dict[str, Recipe] = {
    "small": Recipe(
        preset="small",
        phases=(
            Phase(0.0, (40, 56)),
            Phase(0.85, (48, 68)),
        ),
        settings=replace(_LEARNING, steps=2000, learning_rate=7e-4, final_rate=2e-5, cascade=0.5),
        drawing=SynthesisSettings(close=0.5),
    ),
    "tiny": Recipe(
        preset="tiny",
        phases=(Phase(0.0, (16, 24)),),
        settings=replace(_LEARNING, steps=200),
        drawing=SynthesisSettings(),
    ),
    "large": Recipe(
        preset="paper",
        phases=(
            Phase(0.0, (64, 96)),
            Phase(0.5, (96, 128)),
        ),
        settings=replace(_LEARNING, steps=20_000, learning_rate=3e-4, final_rate=2e-5),
        drawing=SynthesisSettings(),
    ),
}

RENAMED = {"paper": "large"}


def recipe(
    name: str,
    *,
    torso: float | None = None,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Recipe:
    """Return a named recipe, optionally with changed settings.

    Parameters
    ----------
    name : str
        Of `RECIPES`.
    torso : float, optional
        Share of torso pairs, 0 to 1; see `SynthesisSettings`.
    config : mapping, optional
        Fields of `SHMoARegConfig` that differ from the preset.
    **changes
        Fields of `FineTuning`, such as steps or seed; None keeps the recipe's value.

    Raises
    ------
    InputError
        If there is no such recipe, or a setting is out of range.
    """
    if name in RENAMED:
        raise InputError(
            f"The recipe '{name}' is now called '{RENAMED[name]}': it trains on synthetic"
            " images, with other losses and learning rates than the paper. To train on scans as"
            " in Sec. IV-B: shmoareg fine-tune DATASET --from none."
        )
    if name not in RECIPES:
        raise InputError(
            f"There is no recipe '{name}'; available are {', '.join(sorted(RECIPES))}."
        )
    found = RECIPES[name]
    given = {key: value for key, value in changes.items() if value is not None}
    if torso is not None:
        if not 0 <= torso <= 1:
            raise InputError(f"The share of torsos must be between 0 and 1; got {torso!r}.")
        found = replace(found, drawing=replace(found.drawing, torso=torso))
    return replace(
        found, settings=replace(found.settings, **given), config=dict(config or found.config)
    )


def split_subjects(subjects: Sequence[Subject]) -> tuple[list[Subject], list[Subject]]:
    """Split off the last quarter of the subjects for validation; with fewer than four, all serve
    both.
    """
    count = int(len(subjects) * VALIDATION_SHARE)
    return (
        (list(subjects[:-count]), list(subjects[-count:]))
        if count
        else (list(subjects), list(subjects))
    )


class RunningMean:
    """Exponential moving average of a network's weights; early averages decay faster.

    The average removes the noise of single steps and registers better than any of them.
    """

    def __init__(self, network: SHMoAReg, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.decay, self.seen = decay, 0

    @torch.no_grad()
    def follow(self, network: SHMoAReg) -> None:
        """Update the average with the weights of one more step."""
        self.seen += 1
        decay = min(self.decay, self.seen / (self.seen + 9))
        for tensors in (SHMoAReg.parameters, SHMoAReg.buffers):
            for mean, new in zip(tensors(self.network), tensors(network), strict=True):
                mean.lerp_(new, 1 - decay)


def validation_pairs(
    subjects: Sequence[Subject], drawing: SynthesisSettings, *, size: int, count: int = 6
) -> list[Conformed]:
    """Pairs of two held-out subjects with one contrast, all labels and no random deformation.

    They have `size` voxels along the longest axis, at most `VALIDATION_SIZE`, because their labels
    stay in memory.
    """
    size = min(size, VALIDATION_SIZE)
    plain = replace(
        drawing,
        size=(size, size),
        close=0.0,
        torso=0.0,
        shapes=0.0,
        same_subject=0.0,
        stripped=1.0,
        prior=1.0,
        same_contrast=1.0,
        labels=40,
        warp=0.0,
    )
    pairs = SyntheticPairs(split_subjects(subjects)[1], plain, seed=99)
    return [pairs[i] for i in range(count)]


def torso_validation_pairs(
    drawing: SynthesisSettings, *, size: int, count: int = 6
) -> list[Conformed]:
    """Torso pairs of two people in CT of one contrast, all organs, no random deformation.

    As `validation_pairs`; training never sees these people, because each is generated once.
    """
    size = min(size, VALIDATION_SIZE)
    plain = replace(
        drawing,
        size=(size, size),
        close=0.0,
        torso=1.0,
        torso_same=0.0,
        torso_warp=0.0,
        torso_cut=0.0,
        prior=1.0,
        same_contrast=1.0,
        labels=40,
    )
    pairs = SyntheticPairs([], plain, seed=99)
    return [pairs[i] for i in range(count)]
