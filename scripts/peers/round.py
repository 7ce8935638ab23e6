"""One APO round as a task: a command that runs it from loading to saving, and the work counted from its output."""

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Round:
    command: list[str]
    out: str  # directory for the command's output; emptied before the command starts
    threads: int
    world: int = 1

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(path: Path) -> "Round":
        return Round(**json.loads(path.read_text()))

    def with_(self, **changes) -> "Round":
        return dataclasses.replace(self, **changes)


COUNTS = "counts.json"


def counts(out: Path) -> dict[str, int]:
    """Numbers of pairs, samples and steps of a round, from the peer's output or from Foil's results."""
    if (out / COUNTS).exists():
        return json.loads((out / COUNTS).read_text())
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    reward = [step for step in steps if step["phase"].endswith("reward.train")]
    policy = [step for step in steps if step["phase"].endswith("policy.train")]
    samples = (out / "samples" / "round-01.jsonl").read_text().splitlines()
    return account(
        pairs=sum(int(step["rows"]) for step in reward),
        reward_steps=len(reward),
        samples=len(samples),
        sequences=sum(int(step["rows"]) for step in policy),
        policy_steps=len(policy),
    )


def account(pairs: int, reward_steps: int, samples: int, sequences: int, policy_steps: int) -> dict[str, int]:
    return {
        "pairs": pairs,
        "reward steps": reward_steps,
        "scored samples": samples,
        "best-of-n sequences": sequences,
        "policy steps": policy_steps,
    }
