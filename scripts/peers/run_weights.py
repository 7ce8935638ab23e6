"""A peer for weights: safetensors' own functions.

    run_weights WORKLOAD.json

Weights in fp32 are written next to the workload file and read back to the device, with a warm page cache. Between two phases,
a program without resident models does both and loads the weights into the model.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from peers import models
from peers.serve import Repetition, serve, synchronize
from peers.workload import Workload


def load(workload: Workload) -> Repetition:
    model = models.causal_model(workload)
    path = Path(sys.argv[-1]).with_suffix(".weights")

    def seconds(work: Callable[[], object]) -> float:
        synchronize(workload.device)
        started = time.perf_counter()
        work()
        synchronize(workload.device)
        return time.perf_counter() - started

    def save() -> None:
        # Each tensor once, as in Foil: the head may be the embeddings.
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, path, {"format": "pt"})

    def read() -> dict:
        return load_file(path, device=workload.device)

    def next_phase() -> None:
        save()
        model.load_state_dict(read(), strict=False)

    def repetition() -> dict:
        taken = {"save_seconds": seconds(save), "load_seconds": seconds(read), "gap_seconds": seconds(next_phase)}
        size = path.stat().st_size
        path.unlink()
        return {"seconds": sum(taken.values()), "tokens": 0, "bytes": size} | taken

    return repetition


if __name__ == "__main__":
    serve(load)
