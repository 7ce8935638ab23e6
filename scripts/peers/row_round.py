"""Row `round`: one whole round, run by `foil run` and by a script based on transformers and TRL."""

import json
from functools import partial
from pathlib import Path

from peers import data, parity
from peers.case import Case, Measure
from peers.data import Text
from peers.process import Implementation
from peers.round import Round
from peers.setting import RELEASE, Setting

NEW_TOKENS = 64
SAMPLES = 4
# Numbers of human pairs, golden prompts and policy prompts, for the full table and the quick one.
SIZES = (300, 64, 64), (32, 8, 8)
LONGEST_PROMPT = data.LONGEST - NEW_TOKENS
ROUNDS = Measure("rounds/min", lambda _: 60.0)


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_that_fit(setting: Setting, text: Text, directory: Path) -> dict[str, str]:
    """Files with rows that neither side has to truncate: human pairs, golden answers, prompts, and 1 pair to evaluate on.

    Prompts are distinct within and across sets, so that both sides see the same rows.
    """
    human_count, golden_count, prompt_count = setting.pick(*SIZES)
    seen: set[str] = set()

    def fresh(row: dict) -> bool:
        new = row["prompt"] not in seen and len(text.ids(row["prompt"])) <= LONGEST_PROMPT
        seen.add(row["prompt"])
        return new

    def whole(row: dict) -> bool:
        return data.row_length(text.pair(row["prompt"], row["chosen"], row["rejected"])) <= data.LONGEST

    golden = data.take(filter(fresh, data.rows(setting.data, "golden/golden.jsonl.gz")), golden_count)
    human = filter(lambda row: fresh(row) and whole(row), data.rows(setting.data, "hh/preferences.train.jsonl.gz"))
    pairs, evaluation = data.take(human, human_count), data.take(human, 1)
    prompts = [{"prompt": row["prompt"]} for row in data.take(human, prompt_count)]
    sets = {"preferences": pairs, "golden": golden, "prompts": prompts, "evaluation": evaluation}
    return {name: write_rows(directory / f"{name}.jsonl", rows) for name, rows in sets.items()}


def peer(setting: Setting, model: Path, files: dict[str, str], precision: str) -> dict:
    """The job as a Foil job file, from which the peer reads the same settings."""
    constant = {"kind": "constant"}
    micro_batches = {"micro_batch_tokens": 4096}
    return {
        "name": "bench",
        "seed": 0,
        "rounds": 1,
        "policy": {"model": str(model)},
        "text": {"template": "hh", "max_length": data.LONGEST, "truncation_side": "left"},
        "data": {
            "preferences": [files["preferences"]],
            "golden": [files["golden"]],
            "prompts": [files["prompts"]],
            # The peer does not evaluate. Foil's evaluation cannot be turned off, but on one row it costs little.
            "evaluation": {"preferences": [files["evaluation"]], "prompts": [files["evaluation"]]},
            "golden_holdout": 0.0,
        },
        "sampling": {"temperature": 1.0, "max_new_tokens": NEW_TOKENS},
        "generation": {"chunk_prompts": 16, "max_num_seqs": 64},
        "reward_step": {
            "samples": SAMPLES,
            "batch_pairs": 32,
            "learning_rate": 3e-5,
            "optimizer": micro_batches,
            "schedule": constant,
        },
        "policy_step": {
            "samples": SAMPLES,
            "batch_sequences": 16,
            "learning_rate": [2e-5],
            "optimizer": micro_batches,
            "schedule": constant,
        },
        "evaluation": {"kl_prompts": 1, "metric_for_best_model": "reward_mean"},
        "resources": {
            "ranks": setting.threads,
            "threads_per_rank": 1,
            "device": setting.device,
            "precision": precision,
        },
    }


def implementations(setting: Setting, job: Path, directory: Path) -> list[Implementation]:
    """The whole programs of both sides, timed in the same way."""

    def played(name: str, command: list[str]) -> Implementation:
        out = str(directory / name)
        task = Round([*command, out], out, setting.threads)
        return setting.peer(name, "run_whole", task)

    foil = [str(RELEASE / "foil"), "run", str(job), "--json", "--fresh", "--out"]
    peer = setting.peer("", "peer_round", None).command
    both = [played("trl", [*peer, str(job)])]
    return both if setting.peers_only else [played("foil", foil), *both]


def round_contest(setting: Setting, precision: str) -> Case:
    model = setting.model("stories15m")
    directory = setting.scratch / f"round-{precision}"
    directory.mkdir(exist_ok=True)
    files = rows_that_fit(setting, Text(model), directory)
    job = directory / "job.yaml"
    # JSON is YAML.
    job.write_text(json.dumps(peer(setting, model, files, precision)))
    human, golden, prompts = setting.pick(*SIZES)
    return Case(
        key=f"round.{precision}",
        title=f"one whole APO round, stories15m, {human} human pairs, {golden} golden prompts, {prompts} prompts,"
        f" {SAMPLES} samples of up to {NEW_TOKENS} tokens each",
        precision=precision,
        implementations=implementations(setting, job, directory),
        checks=[],
        parity=parity.same_counts("trl"),
        measures=(ROUNDS,),
        note="programs from start to end, loading and saving counted; TRL has no weights for pairs, so its golden pairs"
        " weigh as much as human ones; Foil also evaluates, on one row",
        max_warm_ups=1,
        max_repetitions=3,
    )


def whole_round(setting: Setting) -> list:
    return [partial(round_contest, setting, precision) for precision in setting.precisions]
