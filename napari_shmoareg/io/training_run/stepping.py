"""The steps of a run, and all that happens between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial

import torch

from napari_shmoareg.analysis.validation import Validated
from napari_shmoareg.engine.batch import NotFiniteError, Step
from napari_shmoareg.engine.fine_tuning import fine_tune
from napari_shmoareg.engine.memory import too_large_for
from napari_shmoareg.engine.team import Team
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.events import Event, event, phase
from napari_shmoareg.io.training_run.failures import diverged
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.judging import judge, together
from napari_shmoareg.io.training_run.keeping import LOSSES, Keeper, Position
from napari_shmoareg.io.training_run.loads import ADDED_UP, watch_of
from napari_shmoareg.io.training_run.lock import RunLock
from napari_shmoareg.io.training_run.plan import Plan
from napari_shmoareg.io.training_run.preparing import Material, led
from napari_shmoareg.io.training_run.preview import write_preview
from napari_shmoareg.io.training_run.wishes import Wishes
from napari_shmoareg.model import SHMoAReg

RECENT = 20  # steps from whose time that of the rest is told
POLL = 0.5  # seconds between two looks for a wish while paused


class Stepping:
    """A run that is under way in this process.

    Parameters
    ----------
    plan : Plan
    network : SHMoAReg
    optimiser : Adam
    material : Material
    position : Position
        Where it goes on.
    folder : RunFolder
    keeper : Keeper or None
        What writes; None in all processes but the leader.
    team : Team
    wishes : Wishes
    lock : RunLock or None
    """

    def __init__(
        self,
        plan: Plan,
        network: SHMoAReg,
        optimiser: torch.optim.Adam,
        material: Material,
        position: Position,
        folder: RunFolder,
        keeper: Keeper | None,
        team: Team,
        wishes: Wishes,
        lock: RunLock | None,
    ) -> None:
        self._plan, self._network, self._optimiser, self._material = plan, network, optimiser, material
        self._position, self._folder, self._keeper = position, folder, keeper
        self._team, self._wishes, self._lock = team, wishes, lock
        self._watch = watch_of(folder.loads, network.config.top_k, last=position.step)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._judging = 0.0  # seconds of the last look at the validation pairs

    def run(self) -> Iterator[Event]:
        """All steps that are left; the last event is "end"."""
        steps = self._plan.settings.steps
        self._say("learning")
        yield self._training()
        reason = yield from self._pause_between(last=self._position.step >= steps)
        if not reason:
            for step in self._steps():
                yield from self._noted(step)
                reason = yield from self._pause_between(last=step.step >= steps)
                if reason:
                    break
        yield from self._save()
        best, at = self._position.best.get("step"), self._position.step
        yield event("end", reason=reason, step=at, weights=self._folder.weights, best_step=best)

    def _pause_between(self, last: bool) -> Generator[Event, None, str]:
        """Between two steps: look, save, wait; the reason to end, if there is one."""
        limit = 60 * self._plan.run.minutes
        late = self._team.any(bool(limit) and self._position.seconds >= limit)
        looked = yield from self._look(last=last or late)
        if (asked := (yield from self._asked())) or late or last:
            return asked or ("minutes" if late and not last else "finished")
        if looked or (self._position.step and self._position.step % self._plan.run.save_every == 0):
            yield from self._save()
        return ""

    def _steps(self) -> Iterator[Step]:
        """The engine's steps; what goes wrong is told with the names of the scans."""
        try:
            yield from fine_tune(
                self._network,
                self._material.train,
                self._plan.settings,
                optimiser=self._optimiser,
                start=self._position.step,
                team=self._team,
            )
        except InputError as error:
            if self._keeper is not None and self._keeper.saved < self._position.step:
                self._keeper.save(self._position)
            if isinstance(error, NotFiniteError):
                raise diverged(error, self._material.train, self._position.step, self._folder) from error
            raise
        except RuntimeError as error:
            device = next(self._network.parameters()).device
            plainly = too_large_for(device, self._material.grids[0], error)
            if plainly is None:
                raise
            raise plainly from error

    def _noted(self, step: Step) -> Iterator[Event]:
        """Take down a step."""
        pairs = self._material.train
        self._position = self._position.after(step)
        self._recent.append(step.seconds)
        self._beat()
        for index, why in step.skipped:
            if self._keeper is not None:
                self._keeper.skipped(step.step, pairs.told(index), why)
            yield event("skipped", pair=pairs.told(index), why=why, step=step.step)
        if self._keeper is not None:
            self._keeper.step(step, "; ".join(pairs.told(index) for index in step.pairs))
        losses = {name: getattr(step, name) for name in LOSSES}
        yield event(
            "step",
            step=step.step,
            steps=self._plan.settings.steps,
            **losses,
            gradient=step.gradient,
            rate=step.rate,
            seconds=round(step.seconds, 4),
            pairs=[pairs.names[index] for index in step.pairs],
            left_seconds=round(self._left(), 1),
        )
        if step.step % ADDED_UP == 0:
            yield self._loads()

    def _loads(self) -> Event:
        """Write the selections since the last line, and say what is wrong with them."""
        counts, step = self._position.counts, self._position.step
        self._watch.add(step, counts)
        self._position = self._position.counted()
        shares = self._watch.shares
        if self._keeper is not None:
            self._keeper.loads(step, counts, shares)
        rounded = {place: [round(share, 5) for share in row] for place, row in shares.items()}
        return event("load", step=step, shares=rounded, alarms=[alarm._asdict() for alarm in self._watch.alarms])

    def _look(self, last: bool) -> Generator[Event, None, bool]:
        """Look at the validation pairs, if it is time to; whether it was done."""
        every, pairs, step = self._plan.run.validate_every, self._material.validation, self._position.step
        due = every and len(pairs) and (last or step % every == 0)
        if not due or self._position.validated == step:
            return False
        found: list[Validated] = []
        done = 0.0
        work = partial(judge, self._network, pairs, step, found)
        for told in led(self._team, work, until=lambda: self._wishes.stop):
            done = told.get("done", done)
            yield told
            self._beat()
        if self._team.any(self._team.leader and done < 1):  # asked to stop: it is looked at when the run goes on
            return False
        self._position = replace(self._position, validated=step)
        if found:
            yield from self._judged(together(found))
        yield self._training()
        return True

    def _training(self) -> Event:
        """That steps follow."""
        step, steps = self._position.step, self._plan.settings.steps
        return phase("training", step / steps, f"step {step} of {steps}")

    def _judged(self, found: Validated) -> Iterator[Event]:
        """Take down what validation saw, and show a pair."""
        step, keeper, pairs = self._position.step, self._keeper, self._material.validation
        self._position, best = replace(self._position, judges=pairs.all_told).seen(found)
        self._judging = found.seconds
        if keeper is None:
            return
        keeper.validated(self._position, found, best)
        figures = {name: getattr(found, name) for name in ("dice", "ncc", "folding_percent")}
        yield event("validation", step=step, **figures, best=best, seconds=round(found.seconds, 3))
        if best:
            yield event("saved", step=step, what="best")
        try:
            write_preview(self._folder.preview, self._network, pairs[0], pairs.names[0], step)
        except (InputError, OSError) as error:  # a picture only; a full disk is told by what is saved next
            yield event("skipped", pair=pairs.told(0), why=f"no preview: {error}", step=step)
        else:
            yield event("preview", step=step, folder=self._folder.preview)

    def _save(self) -> Iterator[Event]:
        """Save the state, unless it was."""
        if self._keeper is None or not self._keeper.is_due(self._position):
            return
        self._keeper.save(self._position)
        yield event("saved", step=self._position.step, what="state")

    def _asked(self) -> Generator[Event, None, str]:
        """Do what was asked from outside: wait, or end, which is the answer then."""
        wishes, team = self._wishes, self._team
        if not team.any(wishes.stop or wishes.pause):
            return ""
        if not team.any(wishes.stop):
            yield from self._save()
            self._say("paused")
            yield event("paused", step=self._position.step)
            while team.any(wishes.pause) and not team.any(wishes.stop):
                time.sleep(POLL)
                self._beat()
            self._say("learning")
            if not team.any(wishes.stop):
                yield event("resumed", step=self._position.step)
                return ""
        return "stopped"

    def _left(self) -> float:
        """Seconds that the rest will take about."""
        plan, position = self._plan, self._position
        left = sum(self._recent) / len(self._recent) * (plan.settings.steps - position.step)
        if plan.run.minutes:
            left = min(left, max(0.0, 60 * plan.run.minutes - position.seconds))
        every = plan.run.validate_every
        looks = (plan.settings.steps - position.step) / every if every and len(self._material.validation) else 0
        return left + looks * self._judging

    def _say(self, doing: str) -> None:
        if self._lock is not None:
            self._lock.say(doing)

    def _beat(self) -> None:
        if self._lock is not None:
            self._lock.beat()
