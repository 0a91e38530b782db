"""The command line: ``shmoareg demo | register | apply | inspect ...``."""

from __future__ import annotations


def main() -> None:
    """Run the command; never returns (exit code 0 done, 1 it failed, 2 it was asked wrongly, 130
    cancelled).
    """
    import signal
    from types import FrameType

    from napari_shmoareg.cli.allocator import keep_freed_memory

    keep_freed_memory()
    from napari_shmoareg.cli.app import app

    # Asked to end (kill, a cluster's time limit): leave through the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def hung_up(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a terminal that is closed says so more than once
        raise KeyboardInterrupt

    # not under nohup
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, hung_up)
    app(prog_name="shmoareg")
