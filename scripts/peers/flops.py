"""The minimum arithmetic of a workload, to compare a speed with the machine's limit.

Only matrix products count, with a multiplication and an addition as two operations. Every token counts once: a prompt once
for its two answers (training) or its samples (generation), and padding not at all. An implementation that does
superfluous work therefore shows a smaller fraction of the limit, and none can exceed 1.
"""

import dataclasses
import json
from pathlib import Path

from peers.workload import Batch


@dataclasses.dataclass(frozen=True)
class Shape:
    """The parts of a model's configuration that determine its arithmetic."""

    layers: int
    hidden: int
    attention: int  # heads · head_dim
    keys: int  # key-value heads · head_dim
    ffn: int
    vocabulary: int

    @staticmethod
    def of(model: Path) -> "Shape":
        config = json.loads((model / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            attention=heads * head_dim,
            keys=config.get("num_key_value_heads", heads) * head_dim,
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Entries of one layer's matrices: q and o, k and v, the three of the feed-forward network."""
        return self.hidden * (2 * self.attention + 2 * self.keys + 3 * self.ffn)

    def forward(self, first: int, end: int) -> int:
        """Arithmetic of the decoder over positions first..end, each of which attends to itself and all earlier ones."""
        attended = (first + 1 + end) * (end - first) // 2
        return self.layers * (2 * self.layer_weights * (end - first) + 4 * self.attention * attended)

    def head(self, tokens: int) -> int:
        return 2 * self.hidden * self.vocabulary * tokens

    def pair(self, pair: dict[str, list[int]]) -> int:
        prompt = len(pair["prompt"])
        ends = (prompt + len(pair[kind]) for kind in ("chosen", "rejected"))
        return self.forward(0, prompt) + sum(self.forward(prompt, end) for end in ends)


def reward(shape: Shape, pairs: Batch) -> int:
    """Forward, and twice as much for backward: 6 per weight and unique token, plus attention."""
    return 3 * sum(map(shape.pair, pairs))


def dpo(shape: Shape, pairs: Batch) -> int:
    """The arithmetic of `reward`, plus the reference's forward pass and both models' heads over answer tokens."""
    answers = sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs)
    return 4 * (sum(map(shape.pair, pairs)) + shape.head(answers))


def generation(shape: Shape, prompts: list[list[int]], samples: int, new_tokens: int) -> float:
    """Every prompt once, then each new token except an answer's last. Assumes answers of equal length."""
    each = new_tokens / (len(prompts) * samples)
    total = 0.0
    for prompt in prompts:
        decoded = shape.forward(len(prompt), len(prompt) + round(each) - 1)
        total += shape.forward(0, len(prompt)) + samples * decoded
    return total + shape.head(new_tokens)
