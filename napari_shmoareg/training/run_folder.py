"""The folder of a training run: files, lock, pause and stop requests, status."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from filelock import Timeout

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import files
from napari_shmoareg.io import files as files_module
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.untrusted import names_input, read_object, user_path
from napari_shmoareg.io.work_folder import LOCK, check_free, locked, make_folder
from napari_shmoareg.training.logs import read_rows

if TYPE_CHECKING:
    from napari_shmoareg.training.plan import Plan


MAX_LOCK = 2**16  # bytes
T = TypeVar("T")


class RunLock:
    """Lock of a run folder: a system lock, and a file that names the process that holds it.

    Parameters
    ----------
    path : Path
        Path of that file, in the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def __enter__(self) -> RunLock:
        """Acquire the lock.

        Raises
        ------
        InputError
            If a running process holds it, or the folder is not writable.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path.with_name(LOCK)))
            except Timeout as error:
                raise self._refusal(read_holder(self.path)) from error
            # from a release without a system lock, or a machine that shares the disk but not its
            # locks
            holder = read_holder(self.path)
            if holder is not None:
                raise self._refusal(holder)
            stack.callback(self.path.unlink, missing_ok=True)
            try:
                self.set_status("preparing")
            except OSError as error:
                raise InputError(
                    f"Cannot write into {self.path.parent}: {error.strerror}."
                ) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *what: object) -> None:
        """Release the lock."""
        self._stack.close()

    def set_status(self, doing: str) -> None:
        """Record what the process does: "learning", "paused"."""
        started = psutil.Process().create_time()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        temporary_path = files.temporary_path(self.path.parent, self.path.name)
        temporary_path.write_text(json.dumps(holder | {"doing": doing}), encoding="utf-8")
        os.replace(temporary_path, self.path)

    def _refusal(self, holder: Mapping[str, Any] | None) -> InputError:
        folder, who, hint = self.path.parent, "another process", ""
        if holder is not None:
            who = f"process {holder['pid']} on {holder['host']}"
            if holder["host"] != socket.gethostname():
                hint = f" If it is gone, delete {self.path}."
        return InputError(
            f"{folder} is in use by {who}. Wait for it, end it with `shmoareg runs stop"
            f" {folder}`, or give another folder.{hint}"
        )


def read_holder(path: Path) -> dict[str, Any] | None:
    """The holder of a lock (pid, host, started, doing); None if it is free or the process is gone.

    A process on another machine cannot be checked; it counts as long as the file exists.
    """
    try:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder; the lock file of a run was expected. Delete it to resume"
                " the run."
            )
        found = read_object(path, "the lock of a run", limit=MAX_LOCK)
        holder: dict[str, Any] = {"pid": int(found["pid"]), "host": str(found["host"])}
        holder["started"] = float(found["started"])
        holder["doing"] = str(found.get("doing", ""))
    # missing or incomplete
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        if path.is_dir():
            raise
        return None
    if not 0 < holder["pid"] < 2**31:  # not a valid process id
        return None
    if holder["host"] != socket.gethostname():
        return holder
    try:
        began = psutil.Process(holder["pid"]).create_time()
    except psutil.Error:
        return None
    return holder if abs(began - holder["started"]) < 2 else None


WORDS = ("pause", "go", "stop")


class RunControl:
    """Pause and stop requests to a run.

    Parameters
    ----------
    file : Path
        File in which another process may write a request; it is removed when read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stop = False
        self._pause = False
        self._reads_file = True

    def ignore_file(self) -> None:
        """Do not read the file: the main process of a group reads it for all."""
        self._reads_file = False

    def set_request(self, word: str) -> None:
        """Make a request from within this process, also from a thread or a signal handler.

        Raises
        ------
        InputError
            If the word is not in `WORDS`.
        """
        if word not in WORDS:
            raise InputError(f"A request to a run is one of {', '.join(WORDS)}; got '{word}'.")
        if word == "stop":
            self._stop = True
        else:
            self._pause = word == "pause"

    @property
    def stop(self) -> bool:
        """Whether the run should end at the next safe step."""
        self._read_file()
        return self._stop

    @property
    def pause(self) -> bool:
        """Whether the run should wait."""
        self._read_file()
        return self._pause

    def clear(self) -> None:
        """Remove a request written for an earlier process."""
        self._file.unlink(missing_ok=True)

    def _read_file(self) -> None:
        if not self._reads_file or not self._file.exists():
            return
        moved = files.temporary_path(self._file.parent, self._file.name)
        try:
            os.replace(self._file, moved)
        except FileNotFoundError:  # withdrawn in the meantime
            return
        word = moved.read_text(encoding="utf-8", errors="replace").strip()
        moved.unlink()
        if word in WORDS:
            self.set_request(word)


def write_request(file: Path, word: str) -> None:
    """Send a request to a run in another process.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    with atomic_write(file) as temporary:
        temporary.write_text(f"{word}\n", encoding="utf-8")


STATE = "training.safetensors"


class RunFolder:
    """Paths of the files of a run.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path).absolute()
        self.run_json = self.path / "run.json"
        self.split = self.path / "split.json"
        self.checkup = self.path / "checkup.csv"
        self.metrics = self.path / "metrics.csv"
        self.validation = self.path / "validation.csv"
        self.loads = self.path / "loads.csv"
        self.skipped = self.path / "skipped.csv"
        self.curves = self.path / "tensorboard"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.pretrained = self.path / "weights.safetensors"
        self.state = self.path / STATE
        self.preview = self.path / "preview"
        self.prepared = self.path / "prepared"
        self.request = self.path / "wish"
        self.lock = self.path / "lock"

    @property
    def weights(self) -> Path | None:
        """The weights of a run on synthetic pairs, the best ones by validation, or the last ones;
        None if there are none yet.
        """
        paths = (self.pretrained, self.best, self.last)
        return next((path for path in paths if path.is_file()), None)

    @contextmanager
    def start(self, plan: Plan) -> Iterator[RunLock]:
        """Start a run in a new or empty folder, and hold its lock within the context.

        Raises
        ------
        InputError
            If the folder is not empty or cannot be created.
        """
        from napari_shmoareg.training.plan import write_plan

        self.check_new()
        make_folder(self.path)
        with RunLock(self.lock) as lock:
            self.check_new()
            write_plan(self.run_json, plan)
            yield lock

    @contextmanager
    def resume(self, plan: Plan) -> Iterator[RunLock]:
        """Resume the run of this folder, and hold its lock within the context.

        Raises
        ------
        InputError
            If another process works on it, or the folder is not writable.
        """
        from napari_shmoareg.training.plan import read_plan, write_plan

        with RunLock(self.lock) as lock:
            saved = read_plan(self.run_json)
            if saved.to_dict() != replace(plan, dataset=saved.dataset).to_dict():
                # a new path of the data set is saved after it has been checked
                write_plan(self.run_json, replace(plan, dataset=saved.dataset))
            yield lock

    def check_new(self) -> None:
        """Reject a folder that has more than prepared scans and leftovers of a run killed early.

        Raises
        ------
        InputError
            If it has a run or other content, or cannot be created.
        """
        if self.run_json.exists():
            raise InputError(
                f"{self.path} already contains a run. Give --resume to continue it, or another"
                " --out to start a new one."
            )
        own = (
            LOCK,
            self.lock.name,
            self.prepared.name,
            *(f".{file.name}.partial-" for file in (self.run_json, self.lock)),
        )
        check_free(self.path, own, "run")


def is_empty_run(path: Path) -> bool:
    """Whether a run can be discarded: it saved no state and no trained weights."""
    folder = RunFolder(path)
    if not folder.run_json.is_file() or folder.state.exists() or folder.last.exists():
        return False
    return not folder.best.exists() or _count_lines(folder.metrics, 2) < 2


def reset_run(path: Path) -> None:
    """Remove the files of an empty run, so that another can start in its folder.

    Raises
    ------
    InputError
        If the run saved something, a process works on it, or the folder has other files. Nothing is
        removed then.
    """
    folder = RunFolder(path)
    try:
        with RunLock(folder.lock):
            if not is_empty_run(path):
                raise InputError(
                    f"The run in {path} has saved a state or trained weights. Resume it, or give"
                    " another folder."
                )
            own = _run_files(folder)
            unknown = sorted(
                entry
                for entry in path.rglob("*")
                if entry not in own and entry not in (folder.lock, path / LOCK)
            )
            if unknown:
                raise InputError(
                    f"{unknown[0]} is not a file of a run, and other files are not removed. Move"
                    " it away, or give another folder."
                )
            # run.json last
            for entry in sorted(
                own, key=lambda entry: (entry == folder.run_json, -len(entry.parts))
            ):
                entry.rmdir() if entry.is_dir() else entry.unlink()
    except OSError as error:
        raise InputError(
            f"The folder {path} cannot be emptied: {error}. Give another folder."
        ) from error


def _run_files(folder: RunFolder) -> set[Path]:
    """The existing files of a run."""
    tables = (folder.checkup, folder.metrics, folder.validation, folder.loads, folder.skipped)
    files = (folder.run_json, folder.split, *tables, folder.best, folder.request)
    own = {file for file in files if file.is_file()}
    own |= {
        entry
        for entry in folder.path.iterdir()
        for file in files
        if files_module.is_leftover(entry, file.name)
    }
    for inner, patterns in (
        (folder.curves, ("events.*",)),
        (folder.preview, ("preview.json", "*.nii.gz")),
        (folder.prepared, ("*.safetensors",)),
    ):
        if inner.is_dir() and not inner.is_symlink():
            own |= {
                inner,
                *(file for pattern in patterns for file in inner.glob(pattern) if file.is_file()),
            }
    return own


def _count_lines(path: Path, most: int) -> int:
    """Number of lines of a file, counting at most `most`."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in islice(file, most))
    except FileNotFoundError:
        return 0


MAX_HEADER = 16 * 2**20  # bytes, as for weights
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class RunStatus:
    """Status of a run.

    Attributes
    ----------
    run_json : dict
        The content of run.json.
    step, steps : int
        Steps done according to the tables, and in total.
    saved : int or None
        The step of the saved state.
    seconds : float
        Duration of the steps.
    holder : dict or None
        The process that works on it (pid, host, doing).
    last : dict
        The last line of metrics.csv; empty before the first step.
    validation : tuple of dict
        The lines of validation.csv.
    skipped : tuple of dict
        The lines of skipped.csv.
    alarms : tuple of str
        Current alarms of the routing.
    """

    run_json: dict[str, Any]
    step: int
    steps: int
    saved: int | None
    seconds: float
    holder: dict[str, Any] | None
    last: dict[str, str] = field(default_factory=dict)
    validation: tuple[dict[str, str], ...] = ()
    skipped: tuple[dict[str, str], ...] = ()
    alarms: tuple[str, ...] = ()

    @property
    def best(self) -> dict[str, str] | None:
        """The row of the best validation."""
        found = [row for row in self.validation if row["best"] == "1"]
        return found[-1] if found else None


@names_input
def read_run_status(folder: RunFolder) -> RunStatus:
    """Read the status of a run, also while it is running; changes nothing.

    Raises
    ------
    InputError
        If there is no run, or its files are damaged.
    """
    from napari_shmoareg.training.monitor import routing_watch
    from napari_shmoareg.training.plan import read_run_json

    run_json, holder = read_run_json(folder.run_json), read_holder(folder.lock)
    metrics, validation = read_rows(folder.metrics), read_rows(folder.validation)
    try:
        steps, top_k = int(run_json["settings"]["steps"]), int(run_json["config"]["top_k"])
        if not isinstance(run_json["dataset"]["path"], str) or not isinstance(
            run_json["from"]["name"], str
        ):
            raise TypeError("the data set or the weights are missing")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder.run_json} is damaged ({error!r:.200}).") from error
    check_numbers(folder.metrics, metrics, ("step", "seconds", "total"))
    check_numbers(
        folder.validation, validation, ("step", "ncc", "folding_percent"), ("dice", "best")
    )
    try:
        alarms = tuple(alarm.text for alarm in routing_watch(folder.loads, top_k).alarms)
    except (KeyError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder.loads} is damaged ({error!r:.200}).") from error
    return RunStatus(
        run_json=run_json,
        step=int(float(metrics[-1]["step"])) if metrics else 0,
        steps=steps,
        saved=saved_step(folder),
        seconds=sum(float(row["seconds"]) for row in metrics),
        holder=holder,
        last=metrics[-1] if metrics else {},
        validation=tuple(validation),
        skipped=tuple(read_rows(folder.skipped)),
        alarms=alarms,
    )


def check_numbers(
    path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str], free: Sequence[str] = ()
) -> None:
    """Check that columns hold numbers; cells of `free` columns may be empty.

    Raises
    ------
    InputError
        If a cell is not a number.
    """
    for number, row in enumerate(rows, 1):
        for name in (*columns, *free):
            cell = row.get(name, "")
            try:
                whole = (
                    (not cell and name in free) or abs(float(cell)) < MAX_NUMBER or cell == "nan"
                )
            except ValueError:
                whole = False
            if not whole:
                raise InputError(
                    f"{path} is damaged: in row {number}, {name} is '{cell:.40}'; a number was"
                    " expected."
                )


def saved_step(folder: RunFolder) -> int | None:
    """Step of the saved state, from the file header; None if it is missing or damaged."""
    return _from_state(folder, lambda about: int(about["step"]))


def saved_seconds(folder: RunFolder) -> float:
    """Duration of the steps of the saved state; 0 if it is missing or damaged."""
    seconds = _from_state(folder, lambda about: float(json.loads(about["history"])[-1]["seconds"]))
    return seconds or 0.0


def _from_state(folder: RunFolder, read: Callable[[dict[str, str]], T]) -> T | None:
    """Read the metadata of the saved state."""
    try:
        with folder.state.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        return read(head["__metadata__"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
