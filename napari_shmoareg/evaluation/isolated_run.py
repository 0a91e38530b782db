"""One method on one pair in its own process, to measure time and peak memory and survive crashes.

``python -m napari_shmoareg.evaluation.isolated_run FILE`` reads an `IsolatedRun` as JSON from its
standard input and writes the measurements to FILE."""

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
# temporary files of a killed process are removed with the folder
TEMPORARY = ("TMPDIR", "TEMP", "TMP")
Measurements = dict[str, Any]


@dataclass(frozen=True)
class IsolatedRun(RegistrationSettings):
    """Method, files and settings of one run, in plain values.

    Attributes
    ----------
    method : str
        One of `napari_shmoareg.evaluation.methods.METHODS`.
    moving, fixed, moving_labels, fixed_labels, landmarks : str or None
        Paths.
    change, gamma
        As for `change_contrast`, for the moving image.
    weights : str or None
        For our own methods.
    unigradicon_weights : str or None
        A file.
    threads : int
        For PyTorch, BLAS and ITK.
    surface : bool
        Compute surface distances.
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


def run_isolated(run: IsolatedRun) -> Measurements:
    """Run in a new process; an error there is returned as ``{"error": text}``."""
    with tempfile.TemporaryDirectory() as folder:
        environment = (
            os.environ | dict.fromkeys(THREADS, str(run.threads)) | dict.fromkeys(TEMPORARY, folder)
        )
        result, errors = Path(folder) / "measured.json", Path(folder) / "errors.txt"
        with errors.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*COMMAND, str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment,
                text=True,
                start_new_session=True,  # on Ctrl-C, the command ends this process itself
            )
            try:
                process.communicate(json.dumps(asdict(run)))
            finally:
                _end(process)
        if result.is_file():
            measured: Measurements = json.loads(result.read_text(encoding="utf-8"))
            return measured
        return {
            "error": _end_of(
                process.returncode, errors.read_text(encoding="utf-8", errors="replace")
            )
        }


def measure(run: IsolatedRun) -> Measurements:
    """Run in this process; measure seconds and peak memory of the method alone, then its scores.

    ``seconds`` excludes reading files and weights, imports and scoring.  ``memory_mib`` is the peak
    of this process until the end of the method, or of a program that it ran: interpreter,
    libraries, images and weights included."""
    import torch

    from napari_shmoareg.evaluation.baselines import evaluated_method
    from napari_shmoareg.evaluation.methods import REFINED, change_contrast
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.io import read_pair
    from napari_shmoareg.io.landmarks import read_landmarks
    from napari_shmoareg.metrics.measure import labels_of, measure_field, selected

    torch.set_num_threads(run.threads)
    files = (run.moving, run.fixed, run.moving_labels, run.fixed_labels)
    read = read_pair(*files, nan=run.nan, channel=run.channel)
    moving = change_contrast(read.moving, run.change, run.gamma)
    pair = VolumePair(moving, read.fixed, read.moving_labels, read.fixed_labels)
    landmarks = None if run.landmarks is None else read_landmarks(run.landmarks)
    settings = asdict(run) | {"affine": "auto"}
    settings["refine"] = run.refine if run.method in REFINED else 0
    method = evaluated_method(run.method, settings, _network(run))
    began = time.perf_counter()
    found = method(pair)
    measured: Measurements = {"seconds": time.perf_counter() - began, "memory_mib": peak_memory()}
    if found.deforming_seconds is not None:
        measured["deforming_seconds"] = found.deforming_seconds
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        measured["labels"] = labels_of(pair).description
    measures = [name for name in selected(surface=run.surface) if name != "ncc"]
    means: Measurements = measure_field(pair, found.displacement, measures, landmarks)["means"]
    return measured | means


def peak_memory() -> float:
    """Peak memory so far, MiB, of this process or of a program that it ran (not on Windows)."""
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
    # ru_maxrss on Linux starts at the memory of the parent process
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                own = int(line.split()[1])
    return max(own, programs) / unit


def _network(run: IsolatedRun) -> SHMoAReg | None:
    """Load the network of a method that uses one."""
    from napari_shmoareg.evaluation.methods import NETWORKS

    if run.method not in NETWORKS:
        return None
    from napari_shmoareg.io import load_network
    from napari_shmoareg.io.model_card import choose_device, choose_weights

    device = choose_device(run.device)
    return load_network(choose_weights(run.weights, device)[0], device=device)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and, unless it succeeded, the programs of its session."""
    if process.poll() != 0 and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # none of them is left
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _end_of(code: int, output: str) -> str:
    """Describe why a process without a result ended."""
    if code < 0:
        return f"its process was ended by signal {-code}" + (
            " (out of memory?)" if code == -9 else ""
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"its process ended with code {code}: {lines[-1] if lines else 'no output'}"


def _main() -> None:
    from napari_shmoareg.errors import InputError

    run = IsolatedRun(**json.load(sys.stdin))
    try:
        measured = measure(run)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        measured = {
            "error": text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
        }
    Path(sys.argv[1]).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    _main()
