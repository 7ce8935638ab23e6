"""Two peers for checkpoints: torch.save of weights and AdamW moments, and the disk alone.

    run_checkpoint [--raw] WORKLOAD.json

A checkpoint is what a training service must not lose: parameters and both moments, in fp32. It is written next to the
workload file, flushed to the disk with fsync, dropped from the page cache, and read back into tensors. --raw writes and
reads about the same number of bytes through one buffer, which shows the maximum speed of the disk.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peers import models
from peers.serve import Repetition, serve
from peers.workload import Workload

BLOCK = 8 << 20


def synced(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Drops a file's pages from memory, so that reads go to the disk. Only clean pages are dropped: call it after fsync."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def state_of(workload: Workload) -> dict[str, torch.Tensor]:
    """Weights and the moments before the first step; their values do not matter to a disk."""
    weights = models.causal_model(workload).state_dict()
    moments = {f"{name}.{moment}": value.clone() for name, value in weights.items() for moment in ("m", "v")}
    return weights | moments


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def load(workload: Workload) -> Repetition:
    raw = "--raw" in sys.argv
    state = {} if raw else state_of(workload)
    path = Path(sys.argv[-1]).with_suffix(".checkpoint")
    size = 3 * (Path(workload.model) / "model.safetensors").stat().st_size
    # Random bytes, which no file system can compress or skip.
    block = os.urandom(BLOCK)

    def write() -> None:
        if not raw:
            torch.save(state, path)
        else:
            with open(path, "wb", buffering=0) as file:
                for start in range(0, size, BLOCK):
                    file.write(block[: size - start])
        synced(path)

    def read() -> None:
        if not raw:
            torch.load(path, weights_only=True)
            return
        buffer = bytearray(BLOCK)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def repetition() -> dict:
        written = seconds(write)
        size_on_disk = path.stat().st_size
        forget(path)
        taken = seconds(read)
        path.unlink()
        return {
            "seconds": written + taken,
            "tokens": 0,
            "bytes": size_on_disk,
            "write_seconds": written,
            "read_seconds": taken,
        }

    return repetition


if __name__ == "__main__":
    serve(load)
