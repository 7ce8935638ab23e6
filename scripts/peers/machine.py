"""The machine that the bench runs on: a description and its measured limits."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import time

import torch

from peers.process import environment
from peers.setting import Setting

# Number of cores busy with other programs from which a warning is printed.
BUSY = 0.2


@dataclasses.dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    memory_gib: float
    torch: str
    date: str
    busy_cores: float  # used by other programs in the second before the bench began
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
            busy_cores=busy_cores(),
            command=command,
        )

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, torch {self.torch}, {self.date}"

    @property
    def warning(self) -> str:
        """A warning if metrics would reflect other programs more than the implementations; otherwise empty."""
        if self.busy_cores < BUSY:
            return ""
        return f"other programs kept {self.busy_cores:.1f} cores busy when the bench began; metrics are rough"


def busy_cores(seconds: float = 1.0) -> float:
    """The number of cores used by other programs while this one sleeps."""

    def ticks() -> int:
        with open("/proc/stat") as lines:
            user, nice, system, _idle, _waiting, *others = map(int, lines.readline().split()[1:8])
        return user + nice + system + sum(others)

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def processor() -> str:
    """The model's name, with the bf16 units that determine the speed of bf16."""
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


# FLOP/s by precision.
Limits = dict[str, float]


def matrix_product_limits(setting: Setting, seen: Limits) -> Limits:
    """Limits of fp32 and bf16, measured in a separate process. Returns the best of this and earlier measurements."""
    command = [sys.executable, "-m", "peers.run_matmul", str(setting.threads), setting.device]
    done = subprocess.run(command, env=environment(setting.threads, setting.scratch), check=True, capture_output=True, text=True)
    return {precision: max(speed, seen.get(precision, 0.0)) for precision, speed in json.loads(done.stdout).items()}
