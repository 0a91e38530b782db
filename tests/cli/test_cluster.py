"""Jobs: in the background of this machine for real, and on a SLURM whose commands are played."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from napari_shmoareg.cli.jobs import (
    RETRIES,
    ClusterJob,
    minutes,
    parameters,
    submit,
    submit_command,
    without,
)
from napari_shmoareg.errors import InputError

pytest.importorskip("submitit")

STAND_IN = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with open("calls.txt", "a") as calls:
    calls.write(" ".join([*sys.argv[1:], "gpus=" + os.environ.get("CUDA_VISIBLE_DEVICES", "-")]) + "\\n")
open("begun.json", "w").close()
until = time.monotonic() + (60 if "long" in sys.argv else 0)
while not asked and time.monotonic() < until:
    time.sleep(0.02)
if asked:
    open("stopped.txt", "w").close()
raise SystemExit(3 if "failing" in sys.argv else 130 if asked else 0)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder in which ``-m napari_shmoareg`` is a stand-in that notes how it was
    called.
    """
    package = tmp_path / "work" / "napari_shmoareg"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.chdir(package.parent)
    # submitit's own process has to find the true package, which is not on its path by the working
    # folder alone
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    return package.parent


def _job(place: Path, *argv: str, **more) -> ClusterJob:
    return ClusterJob(
        argv,
        str(place),
        environment={"PYTHONSAFEPATH": None, **more.pop("environment", {})},
        **more,
    )


def _calls(place: Path) -> list[str]:
    return (place / "calls.txt").read_text(encoding="utf-8").splitlines()


def _eventually(holds, seconds=30.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_job_runs_the_command_and_goes_on_with_resume_once_the_work_was_begun(place):
    job = _job(place, "fine-tune", "--out=run", started_file="begun.json")
    assert job() == 0 and job() == 0
    assert [call.split(" gpus")[0] for call in _calls(place)] == [
        "fine-tune --out=run",
        "fine-tune --out=run --resume",
    ]
    assert _job(place, "fine-tune", "--resume", started_file="begun.json")() == 0
    assert _calls(place)[-1].count("--resume") == 1
    with pytest.raises(RuntimeError, match="code 3"):
        _job(place, "failing")()


def test_a_job_in_the_background_sees_the_gpus_that_the_user_sees(place, tmp_path):
    job = _job(place, "evaluate", environment={"CUDA_VISIBLE_DEVICES": "3"})
    (handed,) = submit([job], "local", [], folder=tmp_path / "jobs", name="n")
    assert handed.result() == 0  # submitit itself would have hidden them
    assert _calls(place) == ["evaluate gpus=3"]


def test_several_jobs_get_a_shard_each_and_the_words_that_handed_them_over_are_taken_out(
    place, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    monkeypatch.setattr(
        "napari_shmoareg.cli.jobs.ClusterJob",
        lambda *given: _job(place, *given[0], environment=given[3]),
    )
    words = "evaluate --out=table --submit=local --shards 3 --cluster-option=time=5".split()
    told = submit_command(words, Path("table"), "local", ["time=5"], shards=3)
    _eventually(lambda: (place / "calls.txt").is_file() and len(_calls(place)) == 3)
    assert sorted(_calls(place)) == [
        f"evaluate --out=table --shard={n}/3 gpus=1,2" for n in (1, 2, 3)
    ]
    assert (place / "table-jobs").is_dir() and str(place / "table-jobs") in told
    assert len(told.split("kill -INT ")[1].splitlines()[0].split()) == 3


def test_a_stopped_job_lets_the_command_stop_at_a_safe_step(place, tmp_path):
    (handed,) = submit([_job(place, "long")], "local", [], folder=tmp_path / "jobs", name="n")
    _eventually((place / "begun.json").is_file)
    os.kill(int(handed.job_id), signal.SIGINT)  # as `told` says
    _eventually((place / "stopped.txt").is_file)


SBATCH = """#!/bin/sh
cp "$1" "$PLAYED/sbatch.sh"
echo "Submitted batch job 4711"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, srun and scontrol that note what they are asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "srun": "#!/bin/sh\n",
        "scontrol": '#!/bin/sh\necho "$@" >"$PLAYED/scontrol"\n',
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PLAYED", str(tmp_path))
    return tmp_path


def test_sbatch_gets_the_options_as_they_were_given(slurm, place):
    options = (
        "time=1-12:30:00 partition=gpu gres=gpu:4 nodes=2 cpus-per-task=8 licenses=a:1".split()
    )
    words = ["fine-tune", "DATA", "--processes=8", "--submit=slurm"]
    told = submit_command(
        words,
        Path("run"),
        "slurm",
        options,
        processes=8,
        batch=8,
        started_file=Path("run/run.json"),
    )
    lines = (slurm / "sbatch.sh").read_text(encoding="utf-8").splitlines()
    for flag in (
        "--time=2190 --partition=gpu --gres=gpu:4 --nodes=2 --ntasks-per-node=4 --cpus-per-task=8"
        " --licenses=a:1 --requeue --job-name=shmoareg-run"
    ).split():
        assert f"#SBATCH {flag}" in lines
    assert "--kill-on-bad-exit=1" in lines[-2] + lines[-1]
    assert "4711" in told and "scancel 4711" in told


def test_a_job_that_the_cluster_takes_back_stops_at_a_safe_step_and_is_queued_again_with_resume(
    slurm, place
):
    folder = slurm / "jobs"
    job = _job(place, "long", started_file="begun.json")
    (handed,) = submit([job], "slurm", ["time=60"], folder=folder, name="n")
    environment = os.environ | {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "4711",
        "SLURM_PROCID": "0",
    }
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]

    def start():
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    task = start()
    try:
        _eventually((place / "begun.json").is_file)
        task.send_signal(signal.SIGUSR2)  # as SLURM does
        assert task.wait(30) != 0
        assert (place / "stopped.txt").is_file()
        assert (slurm / "scontrol").read_text(encoding="utf-8") == "requeue 4711\n"
        assert not handed.paths.result_pickle.exists()  # not over
        (place / "stopped.txt").unlink()
        task = start()
        _eventually(lambda: len(_calls(place)) == 2)
        assert _calls(place)[1].startswith("long --resume")
    finally:
        task.send_signal(signal.SIGINT)
        task.wait(30)
    _eventually((place / "stopped.txt").is_file)


def test_a_job_in_this_process_runs_the_command_too(place, tmp_path):
    (handed,) = submit([_job(place, "info")], "debug", [], folder=tmp_path / "jobs", name="n")
    assert handed.result() == 0
    assert _calls(place)[0].startswith("info gpus=")


def test_a_machine_without_slurm_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"SLURM is not available here.*--submit local"):
        submit([], "slurm", ["time=60"], folder=tmp_path, name="n")


def test_without_submitit_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'shmoareg\[cluster\]'"):
        submit([], "local", [], folder=tmp_path, name="n")


@pytest.mark.parametrize(
    ("cluster", "options", "processes", "said"),
    [
        ("slurm", [], 1, r"needs a time limit.*time=12:00:00"),
        ("slurm", ["partition"], 1, r"KEY=VALUE.*got 'partition'"),
        ("slurm", ["time=noon"], 1, "'noon' is not a time"),
        ("slurm", ["time=0"], 1, "less than a minute"),
        ("slurm", ["time=60", "nodes=3"], 4, "4 processes.*3 nodes"),
        ("slurm", ["time=60", "nodes=many"], 1, "whole number of nodes"),
        ("local", ["gres=gpu:1"], 1, "got gres"),
        ("local", ["nodes=2"], 2, "got nodes"),
    ],
)
def test_options_that_make_no_sense_are_refused(cluster, options, processes, said):
    with pytest.raises(InputError, match=said):
        parameters(cluster, options, processes)


def test_more_processes_than_pairs_are_refused_before_anything_is_handed_over(tmp_path):
    with pytest.raises(InputError, match="batch=4 or more"):
        submit_command(["fine-tune"], tmp_path / "run", "local", [], processes=4, batch=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90", 90),
        ("30:30", 31),
        ("12:00:00", 720),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-00:00:01", 1441),
    ],
)
def test_a_time_means_what_it_means_to_sbatch(text, wanted):
    assert minutes(text) == wanted


def test_an_option_is_taken_out_with_its_value_however_it_was_written():
    words = (
        "evaluate --submit slurm --out=x --cluster-option=a=b --quiet --cluster-option c=d".split()
    )
    assert without(words, "--submit", "--cluster-option") == ("evaluate", "--out=x", "--quiet")
    assert RETRIES > 3


@pytest.mark.parametrize(
    ("words", "options", "name"),
    [
        (["register", "a\nb.nii"], ["time=10"], "job"),
        (["register", "a.nii"], ["time=10", "comment=x\n#SBATCH --uid=0"], "job"),
        (["register", "a.nii"], ["time=10\r"], "job"),
        (["register", "a.nii"], ["time=10"], "jo\x1bb"),
        (["register", "a.nii"], ["time=10"], "jo\u2028b"),
    ],
)
def test_a_line_break_never_becomes_a_line_of_the_batch_script(
    words, options, name, tmp_path, monkeypatch
):
    from napari_shmoareg.cli import jobs

    monkeypatch.setattr(jobs.shutil, "which", lambda command: "/bin/true")
    job = jobs.ClusterJob(tuple(words), str(tmp_path))
    with pytest.raises(InputError, match="control character"):
        jobs.submit([job], "slurm", options, folder=tmp_path / "jobs", name=name)
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("option", ["a b=1", "array 1-9 --uid=0", "=3", "nothing"])
def test_the_name_of_an_option_is_one_word(option):
    with pytest.raises(InputError, match="KEY=VALUE"):
        parameters("slurm", ["time=10", option])
