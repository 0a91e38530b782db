"""RunSettings: how a run of learning is divided, watched and kept.

Nothing here changes what a step learns; `FineTuning` holds that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_shmoareg.engine.setting_rules import check_rules


@dataclass(frozen=True)
class RunSettings:
    """What a run does beside its steps.

    Parameters
    ----------
    split : str
        How many subjects learn, judge and stay unseen: counts such as 60/10/10, or shares such as 70%/15%/15%; auto
        is 70%/15%/15%, or the split that comes with the data set. Scans of one subject never stand on both sides.
    split_seed : int
        Decides who stands where.
    affine : {"auto", "rigid", "affine", "none"}
        How scans are brought together before the network sees them; none trusts the headers.
    validate_every : int
        Steps between two looks at the validation pairs; 0 for none. Each look may keep a new best network.
    validation_pairs : int
        How many pairs are looked at; each scan as often as the others.
    save_every : int
        Steps between two states on the disk: what a killed run does again at most.
    minutes : float
        Stop after so many minutes of steps, counted over the whole run; 0 for no such end.
    tensorboard : bool
        Write the curves for TensorBoard too.
    """

    split: str = "auto"
    split_seed: int = 0
    affine: Literal["auto", "rigid", "affine", "none"] = "auto"
    validate_every: int = 100
    validation_pairs: int = 8
    save_every: int = 50
    minutes: float = 0.0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_rules(
            self,
            (self.split_seed >= 0, "split_seed", "at least 0"),
            (self.affine in ("auto", "rigid", "affine", "none"), "affine", "'auto', 'rigid', 'affine' or 'none'"),
            (self.validate_every >= 0, "validate_every", "at least 0"),
            (self.validation_pairs >= 1, "validation_pairs", "at least 1"),
            (self.save_every >= 1, "save_every", "at least 1"),
            (0 <= self.minutes < float("inf"), "minutes", "at least 0, and a number"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)
