"""Runs the protocol for a command that executes a whole round: each repetition is a process from start to end.

    run_whole ROUND.json

Its peak memory is the sum of the peaks of all processes that the command started, maximized over repetitions.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from peers.round import Round, counts

POLL_SECONDS = 0.05


def descendants(pid: int) -> list[int]:
    """The process and those of its descendants that are still running."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            continue
    return found


def resident_peak(pid: int) -> int:
    """The process's own peak so far; 0 if it has exited."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    return peaks[0] if peaks else 0


class Play:
    """Repetitions of one round."""

    def __init__(self, task: Round):
        self.task = task
        self.peak_bytes = 0

    def repetition(self) -> dict:
        out = Path(self.task.out)
        shutil.rmtree(out, ignore_errors=True)
        peaks: dict[int, int] = {}
        started = time.perf_counter()
        process = subprocess.Popen(self.task.command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr)
        while process.poll() is None:
            for pid in descendants(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), resident_peak(pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            raise SystemExit(f"{self.task.command[0]} ended with status {process.returncode}")
        self.peak_bytes = max(self.peak_bytes, sum(peaks.values()))
        return {"seconds": seconds, "tokens": 0, "counts": counts(out)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    play = Play(Round.read(Path(sys.argv[-1])))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        if line.strip() == "quit":
            print(json.dumps({"peak_bytes": play.peak_bytes}), file=answers)
            return
        print(json.dumps(play.repetition()), file=answers)
    raise SystemExit("standard input ended without quit")


if __name__ == "__main__":
    main()
