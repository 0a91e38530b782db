"""What the tests of the engine share: processes that form a team."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def start_team(tmp_path):
    """Start so many processes that run a script as one team; what is left of them ends with the
    test.
    """
    started = []

    def start(script: str, size: int = 2) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        file = tmp_path / "member.py"
        file.write_text(textwrap.dedent(script), encoding="utf-8")
        for rank in range(size):
            where = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
            }
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            environment = os.environ | where | meeting
            started.append(
                subprocess.Popen(
                    [sys.executable, str(file)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()
