"""Settings of all rows: paths, options, and how to start implementations."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from peers.process import Implementation, Task
from peers.workload import Workload, write_reward_head

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target" / "release"


@dataclasses.dataclass(frozen=True)
class Setting:
    data: Path
    scratch: Path
    device: str
    threads: int
    precisions: tuple[str, ...]
    quick: bool
    peers_only: bool

    def foil(self, task: Task, name: str = "foil") -> list[Implementation]:
        """Foil's implementation as a list, which is empty with --peers-only."""
        return [] if self.peers_only else [Implementation(name, [str(RELEASE / "foil-bench")], task)]

    def peer(self, name: str, program: str, task: Task, *flags: str) -> Implementation:
        return Implementation(name, [sys.executable, "-m", f"peers.{program}", *flags], task)

    def pick(self, full, quick):
        """The size for the full table or for the quick one."""
        return quick if self.quick else full

    def model(self, name: str) -> Path:
        directory = ROOT / "models" / name
        if not (directory / "model.safetensors").exists():
            # Its progress must not mix with the table on standard output.
            subprocess.run([ROOT / "scripts" / "fetch-model", name, directory], check=True, stdout=sys.stderr)
        return directory

    def reward_head(self, hidden: int, seed: int = 0) -> str:
        path = self.scratch / f"score-{hidden}-{seed}.safetensors"
        write_reward_head(path, hidden, seed)
        return str(path)

    def workload(self, model: Path, work: str, **fields) -> Workload:
        return Workload(model=str(model), work=work, threads=self.threads, device=self.device, **fields)
