"""The command line: ``shmoareg demo | register | apply | inspect ...``."""

from __future__ import annotations


def main() -> None:
    """Run the command; never returns (exit code 0 done, 1 it failed, 2 it was asked wrongly, 130 cancelled)."""
    import signal

    from napari_shmoareg.cli.application import app

    # Asked to end (kill, a cluster's time limit): leave through the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="shmoareg")
