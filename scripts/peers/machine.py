"""What the bench ran on: described for the reader, and its own limit measured."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys

import torch

from peers.process import environment
from peers.setting import Setting


@dataclasses.dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    memory_gib: float
    torch: str
    date: str
    command: str

    @staticmethod
    def here(device: str, command: str) -> "Machine":
        bytes_there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(
            processor=torch.cuda.get_device_name() if device == "cuda" else processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=bytes_there / 2**30,
            torch=torch.__version__,
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            command=command,
        )

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, torch {self.torch}, {self.date}"


def processor() -> str:
    """The model's name, with the bf16 units that decide what bf16 is worth."""
    name, units = platform.machine(), ""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() == "flags":
                units = ", ".join(unit for unit in ("amx_bf16", "avx512_bf16") if unit in value.split())
                break
    return f"{name} ({units or 'no bf16 units'})"


def matrix_product_limits(setting: Setting) -> dict[str, float]:
    """FLOP/s of fp32 and bf16 matrix products, in a process of its own."""
    command = [sys.executable, "-m", "peers.run_matmul", str(setting.threads), setting.device]
    done = subprocess.run(
        command, env=environment(setting.threads, setting.scratch), check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)
