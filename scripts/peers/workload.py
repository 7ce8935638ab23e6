"""The workload file: the task of one implementation, in a format that both Foil's runner and the peers read.

It contains only token ids: every implementation gets the same rows in the same order, and measurements include no tokenizer.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

# The pairs of one optimizer step: {"prompt": ids, "chosen": ids, "rejected": ids}; the answers exclude their prompt.
Batch = list[dict[str, list[int]]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of one repetition. Fields that a kind of work does not read keep their defaults."""

    model: str
    work: str  # generate, reward, dpo, checkpoint or weights
    precision: str = "fp32"  # fp32 or bf16, of the matrix products; parameters and optimizer state stay fp32
    threads: int = 2
    device: str = "cpu"

    # reward and dpo: one optimizer step per batch. With world 2 each rank takes every second row of a batch.
    batches: list[Batch] = dataclasses.field(default_factory=list)
    learning_rate: float = 1e-5
    beta: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    head_seed: int = 0
    score: str | None = None  # safetensors file with score.weight [1, hidden]

    # generate
    prompts: list[list[int]] = dataclasses.field(default_factory=list)
    samples: int = 1
    max_new: int = 128
    min_new: int = 0
    eos: list[int] = dataclasses.field(default_factory=lambda: [1])
    temperature: float = 1.0  # 0 is greedy
    seed: int = 0
    slots: int = 128

    world: int = 1
    rank: int = 0
    rendezvous: str = ""  # host:port at which rank 0 listens

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(path: Path) -> "Workload":
        fields = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(Workload)}
        if unknown := fields.keys() - known:
            raise SystemExit(f"{path}: unknown fields {sorted(unknown)}; the bench and this runner differ in version")
        return Workload(**fields)

    def with_(self, **changes) -> "Workload":
        return dataclasses.replace(self, **changes)

    @property
    def pairs(self) -> Batch:
        return [pair for batch in self.batches for pair in batch]


def logical_tokens(pairs: Batch) -> int:
    """Number of tokens in training on the pairs, without padding: each answer preceded by its prompt."""
    return sum(2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs)


def unique_tokens(pairs: Batch) -> int:
    """Number of tokens if each prompt counts once for its two responses, which is the minimum to compute."""
    return sum(len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs)


def unused_token(workload: Workload) -> int:
    """The lowest id that does not occur: as a pad token, pooling cannot mistake it for the end of a row."""
    used = {token for pair in workload.pairs for part in ("prompt", "chosen", "rejected") for token in pair[part]}
    used |= {token for prompt in workload.prompts for token in prompt} | set(workload.eos)
    return next(token for token in range(len(used) + 1) if token not in used)


def write_reward_head(path: Path, hidden: int, seed: int) -> None:
    """A common initial head for both sides, at a scale that makes the first rewards differ visibly."""
    generator = torch.Generator().manual_seed(seed)
    save_file({"score.weight": torch.randn(1, hidden, generator=generator) / hidden**0.5}, path)
