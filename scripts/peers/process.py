"""The bench's side of the protocol: an implementation's processes, from start to quit."""

import dataclasses
import json
import os
import select
import socket
import subprocess
from pathlib import Path
from typing import Protocol

STDERR_LINES = 12
# A runner that prints nothing for this many seconds counts as hung; no repetition takes nearly as long.
SILENT_SECONDS = 1800


class Task(Protocol):
    """The input of a runner: a Workload or a Round."""

    threads: int
    world: int

    def write(self, path: Path) -> None: ...

    def with_(self, **changes) -> "Task": ...


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An implementation: the command line of its runner, to which the path of its task is appended."""

    name: str
    command: list[str]
    task: Task

    @property
    def is_foil(self) -> bool:
        return self.name.startswith("foil")

    def on(self, task: Task) -> "Implementation":
        return dataclasses.replace(self, task=task)


class ImplementationFailed(Exception):
    """A runner ended early or broke the protocol; the message includes the end of its standard error."""


class Runner:
    """One process of an implementation."""

    def __init__(self, implementation: Implementation, task: Task, stem: Path):
        self.name = implementation.name
        workload, self.errors = stem.with_suffix(".json"), stem.with_suffix(".stderr")
        task.write(workload)
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [*implementation.command, str(workload)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(task.threads, stem.parent) | own_gpu(task),
                text=True,
            )

    def say(self, word: str) -> None:
        try:
            print(word, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self.failure("ended before it was told to") from None

    def hear(self) -> dict:
        # Every command is answered with one line, so nothing can be waiting in the reader's own buffer.
        if not select.select([self.process.stdout], [], [], SILENT_SECONDS)[0]:
            raise self.failure(f"said nothing for {SILENT_SECONDS} seconds")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise self.failure(f"ended with status {self.process.returncode}")
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise self.failure(f"printed {line.strip()!r}, which is no JSON") from None

    def failure(self, what: str) -> ImplementationFailed:
        tail = self.errors.read_text(errors="replace").strip().splitlines()[-STDERR_LINES:]
        return ImplementationFailed("\n    ".join([f"{self.name} {what}", *tail]))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Running:
    """A started implementation: one runner, or one for each rank."""

    def __init__(self, implementation: Implementation, directory: Path):
        world = implementation.task.world
        tasks = [implementation.task]
        if world > 1:
            rendezvous = f"127.0.0.1:{free_port()}"
            tasks = [implementation.task.with_(rank=rank, rendezvous=rendezvous) for rank in range(world)]
        stem = "".join(letter if letter.isalnum() else "-" for letter in implementation.name)
        self.runners: list[Runner] = []
        try:
            # All ranks are started before waiting for any, because they wait for each other.
            for rank, task in enumerate(tasks):
                self.runners.append(Runner(implementation, task, directory / f"{stem}-{rank}"))
            for runner in self.runners:
                if runner.hear() != {"ready": True}:
                    raise runner.failure("did not say that it is ready")
        except BaseException:
            self.kill()
            raise

    def repetition(self) -> dict:
        """The metrics of one repetition; for several ranks, the slowest one's seconds and the mean of their losses."""
        for runner in self.runners:
            runner.say("run")
        metrics = [runner.hear() for runner in self.runners]
        whole = metrics[0] | {"seconds": max(metric["seconds"] for metric in metrics)}
        if "losses" in whole:
            # The mean of equal shares is the batch's loss, whether ranks report their own loss or already the batch's.
            steps = zip(*(metric["losses"] for metric in metrics), strict=True)
            whole["losses"] = [sum(losses) / len(losses) for losses in steps]
        return whole

    def quit(self) -> int:
        """Ends the processes and returns the sum of their peak memory in bytes."""
        for runner in self.runners:
            runner.say("quit")
        peak = sum(runner.hear()["peak_bytes"] for runner in self.runners)
        for runner in self.runners:
            if runner.process.wait() != 0:
                raise runner.failure(f"ended with status {runner.process.returncode}")
        return peak

    def kill(self) -> None:
        for runner in self.runners:
            runner.kill()


def environment(threads: int, scratch: Path) -> dict[str, str]:
    """The environment, equal for every implementation. It keeps libraries off the network and scratch files on the measured disk."""
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TMPDIR": str(scratch),
    }


def own_gpu(task: Task) -> dict[str, str]:
    """Ranks share no GPU. Each sees only its own, chosen by rank from those that the bench sees."""
    if task.world <= 1 or getattr(task, "device", "cpu") != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(rank) for rank in range(task.world)]
    return {"CUDA_VISIBLE_DEVICES": gpus[task.rank]}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
