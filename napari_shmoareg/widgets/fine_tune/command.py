"""The command that a run is started by."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CALLED = (sys.executable, "-m", "napari_shmoareg", "fine-tune")


@dataclass(frozen=True)
class Order:
    """What is to be learned from, how, and where it goes.

    Attributes
    ----------
    out : str
        The run's folder.
    dataset : str
        A folder or a list; empty for a run that goes on with its own.
    finding : mapping
        Options of how its files are found (images, labels, subject, kind); empty words are left out.
    weights, device : str
        "auto" for the command's own choice; weights "none" to begin from nothing.
    settings : mapping
        By the names of `FineTuning` and `RunSettings`.
    preset : str
        Of the network that begins from nothing; empty otherwise.
    """

    out: str
    dataset: str = ""
    finding: Mapping[str, str] = field(default_factory=dict)
    weights: str = "auto"
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""

    def arguments(self, *more: str) -> list[str]:
        """What follows ``shmoareg fine-tune``."""
        found = [self.dataset] if self.dataset else []
        found += ["--out", self.out]
        words = {**self.finding, "from": self.weights, "preset": self.preset, "device": self.device}
        for name, word in words.items():
            if word and word != "auto":
                found += [f"--{name}", word]
        for name, value in self.settings.items():
            found += _option(name, value)
        return [*found, *more]

    def command(self, *more: str) -> list[str]:
        """The whole command, whose child tells what it does and does not outlive this program by more than a step."""
        return [*CALLED, *self.arguments("--json", "--with-parent", *more)]

    def written(self, *more: str) -> str:
        """As a person types it."""
        return shlex.join(["shmoareg", "fine-tune", *self.arguments(*more)])


def _option(name: str, value: Any) -> Sequence[str]:
    kebab = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{kebab}" if value else f"--no-{kebab}"]
    return [] if value is None else [f"--{kebab}", str(value)]
