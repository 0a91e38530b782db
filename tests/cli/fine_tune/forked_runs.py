"""A program that runs `shmoareg` in processes of their own, quickly: it loads everything once, then
forks.

Reads one JSON object a line: {"arguments": [...], "stdout": FILE, "stdin": FILE, "die": [WHAT,
NAME, COUNT]}. Prints the number of the process, then, when it has ended, its exit code (negative
for a signal).

"die" has the process kill itself with SIGKILL at a moment that a test could not hit from outside:
    ["replacing", NAME, n]  before the n-th time that a finished file of that name is moved to its
    place ["replaced", NAME, n]   right after it ["writing", NAME, n]    after half of the bytes of
    that file are written, the n-th time ["adding", NAME, n]     after half of a line of that table
    is written, the n-th time ["telling", EVENT, n]   when the n-th event of that name is told
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from napari_shmoareg.cli import main, train, training_process
from napari_shmoareg.datasets import Checkup, open_dataset
from napari_shmoareg.registration.refinement import adam
from napari_shmoareg.training import logs, plan

# as at a terminal, also where the tests themselves run under nohup
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def die() -> None:
    """End at once, as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Whether this is the moment."""

    def __init__(self, name, count):
        self.name, self.left = name, count

    def __call__(self, name) -> bool:
        self.left -= str(name) == self.name
        return str(name) == self.name and self.left == 0


def die_at(what, name, count) -> None:
    """Put the end of this process where it was ordered."""
    now = Countdown(name, count)
    replace, write_bytes, echo, opened = (
        os.replace,
        Path.write_bytes,
        train.typer.echo,
        logs.StepTable.add,
    )

    def replacing(source, target, **more):
        ended = now(Path(target).name)
        if ended and what == "replacing":
            die()
        replace(source, target, **more)
        if ended:
            die()

    def writing(path, data):
        if f".{name}.partial-" in path.name and now(name):
            write_bytes(path, data[: len(data) // 2])
            die()
        return write_bytes(path, data)

    def adding(table, rows):
        rows = list(rows)
        before = table._path.stat().st_size
        opened(table, rows)
        if rows and now(table._path.name):
            os.truncate(table._path, (before + table._path.stat().st_size) // 2)
            die()

    def telling_it(text, **more):
        if text.startswith("{") and now(json.loads(text)["event"]):
            die()
        echo(text, **more)

    if what in ("replacing", "replaced"):
        os.replace = replacing
    elif what == "writing":
        Path.write_bytes = writing
    elif what == "adding":
        logs.StepTable.add = adding
    else:
        train.typer.echo = telling_it


def child(order) -> None:
    """In the forked process: the command, as from a shell."""
    torch.set_num_threads(1)
    os.dup2(os.open(order.get("stdin", os.devnull), os.O_RDONLY), 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.dup2(os.open(order["stdout"], flags), 1)
    os.dup2(os.open(order["stdout"] + ".err", flags), 2)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", buffering=1))
    if "die" in order:
        die_at(*order["die"])
    sys.argv = ["shmoareg", *order["arguments"]]
    main()


if __name__ == "__main__":
    assert training_process.learn and Checkup and open_dataset
    adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)  # loads what torch loads late
    # states and looks of runs on synthetic pairs, as in the conftest
    plan.RUN = replace(plan.RUN, save_every=5, validate_every=6, validation_pairs=2)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order)
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
