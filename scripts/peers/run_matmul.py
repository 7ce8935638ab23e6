"""The machine's own limit: the speed at which torch multiplies two square matrices, in fp32 and in bf16.

    run_matmul THREADS DEVICE

Prints {"fp32": FLOP/s, "bf16": FLOP/s}, each the best of several products: a limit is not an average.
"""

import json
import sys
import time

import torch

from peers.serve import synchronize

SIZE = {"cpu": 2048, "cuda": 8192}
PRODUCTS = {"cpu": 12, "cuda": 50}


def limit(dtype: torch.dtype, device: str) -> float:
    size = SIZE[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(PRODUCTS[device]):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def main() -> None:
    threads, device = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(threads)
    print(json.dumps({"fp32": limit(torch.float32, device), "bf16": limit(torch.bfloat16, device)}))


if __name__ == "__main__":
    main()
