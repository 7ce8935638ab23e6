"""Token rows from the data sets: human preference pairs, and beginnings of stories as prompts."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from peers.workload import Batch

LONGEST = 256


class MissingData(Exception):
    """A data set is missing. The message names it and says what to do."""


def rows(directory: Path, name: str) -> Iterator[dict]:
    """The rows of a set, in file order."""
    with open_set(directory, name) as lines:
        yield from map(json.loads, lines)


def open_set(directory: Path, name: str):
    path = directory / name
    if not path.exists():
        raise MissingData(f"{path} is missing; give the directory that holds {name} with --data")
    return gzip.open(path, "rt", encoding="utf-8")


class Text:
    """The tokenizer of a model directory, with the model's own BOS and EOS."""

    def __init__(self, model: Path):
        config = json.loads((model / "config.json").read_text())
        style = json.loads((model / "tokenizer_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.bos = [config["bos_token_id"]] if style.get("add_bos_token") else []
        self.eos = config["eos_token_id"]

    def ids(self, text: str) -> list[int]:
        return self.bos + self.tokenizer.encode(text, add_special_tokens=False).ids

    def pair(self, prompt: str, chosen: str, rejected: str) -> dict[str, list[int]]:
        """Tokens may merge across the end of a prompt. An answer then begins at the first token that differs."""
        alone, *whole = self.ids(prompt), self.ids(prompt + chosen), self.ids(prompt + rejected)
        shared = min(common_prefix(alone, ids) for ids in whole)
        answers = [ids[shared:] + [self.eos] for ids in whole]
        return {"prompt": alone[:shared], "chosen": answers[0], "rejected": answers[1]}


def common_prefix(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))


def preference_pairs(directory: Path, text: Text, longest: int = LONGEST) -> Iterator[dict[str, list[int]]]:
    """Human pairs in file order whose two rows both fit completely, including EOS; others are skipped."""
    for row in rows(directory, "hh/preferences.train.jsonl.gz"):
        pair = text.pair(row["prompt"], row["chosen"], row["rejected"])
        if row_length(pair) <= longest and pair["chosen"] != pair["rejected"]:
            yield pair


def row_length(pair: dict[str, list[int]]) -> int:
    return len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"]))


def take(rows: Iterator, count: int) -> list:
    taken = [row for _, row in zip(range(count), rows)]
    if len(taken) < count:
        raise MissingData(f"{count} rows are needed, but the data set yields only {len(taken)} that fit")
    return taken


def batches(pairs: Batch, size: int) -> list[Batch]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def story_beginnings(directory: Path, text: Text, count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """The first tokens of the first stories. The length of prompt i cycles through `lengths`, inclusive."""
    shortest, longest = lengths
    prompts = []
    with open_set(directory, "tinystories.txt.gz") as lines:
        # Stories begin with these words; the excerpt does not mark their limits in any other way.
        for line in lines:
            if not line.startswith(("Once upon a time", "One day", "Once there was")):
                continue
            ids = text.ids(line.strip())
            length = shortest + len(prompts) * 5 % (longest - shortest + 1)
            if len(ids) >= longest:
                prompts.append(ids[:length])
            if len(prompts) == count:
                return prompts
    raise MissingData(f"{count} stories are needed, but {directory}/tinystories.txt.gz holds only {len(prompts)}")
