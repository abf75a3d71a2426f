"""Kill runs with SIGKILL and resume them; its own process, since it forks: ``python killed.py FOLDER MOMENT ...``.

A moment is ``time:F``, a share F of an undisturbed run's duration, or ``before:N`` or ``after:N``, the N-th renaming of
a file into place. Leaves FOLDER/whole, which was never killed, and one run folder a moment, killed there and resumed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripted import TINY, toy_decoder

import lpds
from lpds.log import read_json_lines


def in_child(work: Callable[[], object], seconds: float | None = None) -> int:
    """Run in a fork, killed after a while if asked; returns the exit status as ``os.waitpid`` has it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def die_at(when: str, number: int) -> None:
    """Make the number-th renaming the last thing this process does, or the first it does not."""
    rename, seen = os.replace, [0]

    def replace(source: str | Path, target: str | Path) -> None:
        seen[0] += 1
        if seen[0] == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def main() -> None:
    root, moments = Path(sys.argv[1]), sys.argv[2:]
    decoder = toy_decoder()

    def steer(folder: Path, when: str = "", number: int = 0) -> None:
        if when:
            die_at(when, number)
        lpds.steer("toy", decoder=decoder, out=folder, **TINY)

    steer(root / "whole")  # in this process, so that the forks find everything imported
    duration = read_json_lines(root / "whole" / "metrics.jsonl")[-1]["wall_s"]
    for moment in moments:
        folder = root / moment.replace(":", "-")
        when, figure = moment.split(":")
        if when == "time":
            status = in_child(lambda f=folder: steer(f), float(figure) * duration)
        else:
            status = in_child(lambda f=folder, w=when, n=int(figure): steer(f, w, n))
        assert status == signal.SIGKILL or (when == "time" and status == 0), f"{moment}: the run was not killed ({status})"
        if not (folder / "config.json").is_file():  # killed before there was a run
            assert in_child(lambda f=folder: steer(f)) == 0
        else:
            assert in_child(lambda f=folder: lpds.resume(f, decoder=decoder, quiet=True)) == 0, moment


if __name__ == "__main__":
    main()
