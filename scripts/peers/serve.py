"""The peer's side of the protocol between the bench and an implementation.

    RUNNER WORKLOAD.json      loads, then prints {"ready": true}
    stdin: run                does one repetition from the loaded state, prints {"seconds": …, "tokens": …, …}; with
                              several ranks, each prints the tokens of all
    stdin: quit               prints {"peak_bytes": …} and ends with 0

Everything else goes to standard error, so that output of libraries cannot disturb the protocol.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from peers.workload import Workload

# Runs one repetition and returns its metrics, at least seconds and tokens.
Repetition = Callable[[], dict]


class Stopwatch:
    """Seconds spent inside `with` blocks, including the GPU's queued work."""

    def __init__(self, device: str):
        self.device = device
        self.seconds = 0.0

    @contextmanager
    def running(self):
        self.start()
        yield
        self.stop()

    def start(self) -> None:
        synchronize(self.device)
        self.started = time.perf_counter()

    def stop(self) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self.started


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """On a CPU the process's largest resident set, including libraries; on a GPU the memory that torch allocated."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve(load: Callable[[Workload], Repetition]) -> None:
    """The main function of a runner. `load` receives the workload whose path is the last argument."""
    # Reserve stdout for the protocol, and redirect descriptor 1 to standard error for everything else.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    workload = Workload.read(Path(sys.argv[-1]))
    torch.set_num_threads(workload.threads)
    repetition = load(workload)
    answer({"ready": True})
    for line in sys.stdin:
        match line.strip():
            case "run":
                answer(repetition())
            case "quit":
                answer({"peak_bytes": peak_bytes(workload.device)})
                return
            case other:
                raise SystemExit(f"{other!r} is not in the protocol, which knows run and quit")
    raise SystemExit("standard input ended without quit")
