"""One method on one pair, in a process of its own.

So its time, its peak memory and its crashes are its own. ``python -m
napari_shmoareg.evaluation.isolated_run FILE`` reads an `IsolatedRun` as JSON from its input and
writes what it measured to FILE."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_shmoareg.model import SHMoAReg


from napari_shmoareg.settings import RegistrationSettings

COMMAND = (sys.executable, "-m", "napari_shmoareg.evaluation.isolated_run")
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
# what a process that was killed leaves there goes with the folder
TEMPORARY = ("TMPDIR", "TEMP", "TMP")
Measured = dict[str, Any]


@dataclass(frozen=True)
class IsolatedRun(RegistrationSettings):
    """What to run, in plain values, with the settings of our own methods.

    Attributes
    ----------
    method : str
        One of `napari_shmoareg.evaluation.methods.METHODS`.
    moving, fixed, moving_labels, fixed_labels, landmarks : str or None
        Paths.
    change, gamma
        As for `change_contrast`, of the moving image.
    weights : str or None
        Of our own methods.
    unigradicon_weights : str or None
        A file.
    threads : int
        For PyTorch, BLAS and ITK.
    surface : bool
        Surface distances too.
    nan, channel
        As for `read_pair`.
    """

    method: str
    moving: str
    fixed: str
    moving_labels: str | None = None
    fixed_labels: str | None = None
    landmarks: str | None = None
    change: str = "none"
    gamma: float = 0.5
    weights: str | None = None
    unigradicon_weights: str | None = None
    threads: int = 1
    surface: bool = False
    nan: float | None = None
    channel: int | None = None


def run_trial(trial: IsolatedRun) -> Measured:
    """Run a trial in a new process; what went wrong there comes back as ``{"error": text}``."""
    with tempfile.TemporaryDirectory() as folder:
        environment = (
            os.environ
            | dict.fromkeys(THREADS, str(trial.threads))
            | dict.fromkeys(TEMPORARY, folder)
        )
        result, errors = Path(folder) / "measured.json", Path(folder) / "errors.txt"
        with errors.open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                [*COMMAND, str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for the command, which ends this process itself
            )
            try:
                process.communicate(json.dumps(asdict(trial)))
            finally:
                _end(process)
        if result.is_file():
            measured: Measured = json.loads(result.read_text(encoding="utf-8"))
            return measured
        return {
            "error": _end_of(
                process.returncode, errors.read_text(encoding="utf-8", errors="replace")
            )
        }


def measure(trial: IsolatedRun) -> Measured:
    """Run a trial in this process: seconds and peak memory of the method alone, then its score.

    ``seconds`` holds neither the reading of files and weights, nor imports, nor the scoring.
    ``memory_mib`` is the most that this process ever held until the method was done, or a program
    that it ran: interpreter, libraries, images and weights included."""
    import torch

    from napari_shmoareg.evaluation.baselines import evaluated_method
    from napari_shmoareg.evaluation.methods import REFINED, change_contrast
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.io import read_pair
    from napari_shmoareg.io.landmarks import read_landmarks
    from napari_shmoareg.metrics.measure import labels_of, measure_field, selected

    torch.set_num_threads(trial.threads)
    files = (trial.moving, trial.fixed, trial.moving_labels, trial.fixed_labels)
    read = read_pair(*files, nan=trial.nan, channel=trial.channel)
    moving = change_contrast(read.moving, trial.change, trial.gamma)
    pair = VolumePair(moving, read.fixed, read.moving_labels, read.fixed_labels)
    landmarks = None if trial.landmarks is None else read_landmarks(trial.landmarks)
    settings = asdict(trial) | {"affine": "auto"}
    settings["refine"] = trial.refine if trial.method in REFINED else 0
    method = evaluated_method(trial.method, settings, _network(trial))
    began = time.perf_counter()
    found = method(pair)
    measured: Measured = {"seconds": time.perf_counter() - began, "memory_mib": peak_memory()}
    if found.deforming_seconds is not None:
        measured["deforming_seconds"] = found.deforming_seconds
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        measured["labels"] = labels_of(pair).description
    measures = [name for name in selected(surface=trial.surface) if name != "ncc"]
    means: Measured = measure_field(pair, found.displacement, measures, landmarks)["means"]
    return measured | means


def peak_memory() -> float:
    """MiB that this process held at most so far, or one of the programs that it ran to their end
    (not on Windows).
    """
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    unit = 2**20 if sys.platform == "darwin" else 1024
    own, programs = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    status = Path("/proc/self/status")
    # ru_maxrss on Linux begins with what the parent held, which is not this process's own
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                own = int(line.split()[1])
    return max(own, programs) / unit


def _network(trial: IsolatedRun) -> SHMoAReg | None:
    """The network of a method that uses one."""
    from napari_shmoareg.evaluation.methods import NETWORKS

    if trial.method not in NETWORKS:
        return None
    from napari_shmoareg.io import load_network
    from napari_shmoareg.io.model_card import chosen_device, chosen_weights

    device = chosen_device(trial.device)
    return load_network(chosen_weights(trial.weights, device)[0], device=device)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process, and where it did not end well the programs that it had started, which share
    its session.
    """
    if process.poll() != 0 and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # none of them is left
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _end_of(code: int, said: str) -> str:
    """Why a process that measured nothing ended."""
    if code < 0:
        return f"its process was ended by signal {-code}" + (
            " (out of memory?)" if code == -9 else ""
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"its process ended with code {code}: {lines[-1] if lines else 'it said nothing'}"


def _main() -> None:
    from napari_shmoareg.errors import InputError

    trial = IsolatedRun(**json.load(sys.stdin))
    try:
        measured = measure(trial)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        measured = {
            "error": text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
        }
    Path(sys.argv[1]).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    _main()
