"""One round with transformers and TRL, equivalent to one round of `foil run`.

    peer_round JOB.yaml OUT

Generates completions for the golden prompts, trains with RewardTrainer on human pairs and on golden answers against
completions, generates and scores completions for the policy's prompts, trains with SFTTrainer on the best of each prompt,
and saves both models. Reads Foil's job file.
"""

import copy
import json
import sys
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from peers.data import Text
from peers.round import COUNTS, account

# Batch sizes of generation, scoring and training that are fastest on two cores.
PROMPTS_AT_ONCE = 32
SCORED_AT_ONCE = 32
MICRO_BATCH = 8


def rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class PeerRound:
    """The job's settings, the policy and the reward model."""

    def __init__(self, job: dict, out: Path):
        self.job, self.out = job, out
        self.bf16 = job["resources"]["precision"] == "bf16"
        self.device = job["resources"]["device"]
        model = Path(job["policy"]["model"])
        self.text = Text(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        # Neither BOS nor EOS, which end completions: pooling looks for the last token that is not padding.
        self.pad = next(i for i in range(3) if i not in (*self.text.bos, self.text.eos))
        self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.pad)
        self.policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(self.device)
        torch.manual_seed(job["seed"])
        self.reward = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        self.reward = self.reward.to(self.device)
        self.reward.config.pad_token_id = self.pad

    def answer(self, text: str, budget: int) -> list[int]:
        """Tokens of a golden answer, truncated like completions, with EOS only if it is not truncated."""
        ids = self.text.tokenizer.encode(text.strip(), add_special_tokens=False).ids
        return [*ids, self.text.eos][:budget]

    def samples(self, prompts: list[list[int]]) -> list[list[list[int]]]:
        """n completions for each prompt."""
        model = copy.deepcopy(self.policy).bfloat16() if self.bf16 else self.policy
        count, new = self.job["policy_step"]["samples"], self.job["sampling"]["max_new_tokens"]
        completions = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            tokens, mask = self.padded(prompts[start : start + PROMPTS_AT_ONCE], left=True)
            with torch.inference_mode():
                generated = model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=count,
                    max_new_tokens=new,
                    eos_token_id=self.text.eos,
                    pad_token_id=self.pad,
                )
            completions.extend(map(self.until_end, generated[:, tokens.shape[1] :].tolist()))
        return [completions[start : start + count] for start in range(0, len(completions), count)]

    def until_end(self, completion: list[int]) -> list[int]:
        return completion[: completion.index(self.text.eos) + 1] if self.text.eos in completion else completion

    def padded(self, batch: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, batch))
        gaps = [longest - len(row) for row in batch]
        tokens = [[self.pad] * gap + row if left else row + [self.pad] * gap for row, gap in zip(batch, gaps)]
        mask = [[0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap for row, gap in zip(batch, gaps)]
        return torch.tensor(tokens, device=self.device), torch.tensor(mask, device=self.device)

    def training(self, name: str, batch: int, learning_rate: float) -> dict:
        return dict(
            output_dir=str(self.out / name),
            use_cpu=self.device == "cpu",
            bf16=self.bf16,
            per_device_train_batch_size=min(batch, MICRO_BATCH),
            gradient_accumulation_steps=max(1, batch // MICRO_BATCH),
            num_train_epochs=1,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            max_length=None,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )


def train_reward(peer: PeerRound, samples: list[list[list[int]]], golden: list[dict], prompts: list[list[int]]):
    """Human pairs, and each golden answer against every completion of its prompt. Returns (pairs, steps)."""
    pairs = []
    for row in rows(peer.job["data"]["preferences"][0]):
        pair = peer.text.pair(row["prompt"], row["chosen"], row["rejected"])
        pairs.append({f"{kind}_ids": pair["prompt"] + pair[kind] for kind in ("chosen", "rejected")})
    budget = peer.job["sampling"]["max_new_tokens"]
    for row, prompt, completions in zip(golden, prompts, samples):
        chosen = prompt + peer.answer(row["golden"], budget)
        pairs.extend({"chosen_ids": chosen, "rejected_ids": prompt + completion} for completion in completions)
    step = peer.job["reward_step"]
    trainer = RewardTrainer(
        model=peer.reward,
        args=RewardConfig(**peer.training("reward-trainer", step["batch_pairs"], step["learning_rate"])),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=peer.tokenizer,
    )
    trainer.train()
    trainer.save_model(str(peer.out / "reward"))
    return len(pairs), trainer.state.global_step


def rewards(peer: PeerRound, sequences: list[list[int]]) -> list[float]:
    scores = []
    peer.reward.eval()
    for start in range(0, len(sequences), SCORED_AT_ONCE):
        tokens, mask = peer.padded(sequences[start : start + SCORED_AT_ONCE])
        with torch.inference_mode(), torch.autocast(peer.device, torch.bfloat16, enabled=peer.bf16):
            scores.extend(peer.reward(input_ids=tokens, attention_mask=mask).logits.squeeze(-1).float().tolist())
    return scores


def best_of(peer: PeerRound, prompts: list[list[int]], samples: list[list[list[int]]]) -> list[dict]:
    """The best completion of each prompt according to the reward model, with a loss on the completion only."""
    sequences = [prompt + completion for prompt, completions in zip(prompts, samples) for completion in completions]
    scores = rewards(peer, sequences)
    count = len(samples[0])
    chosen = []
    for index, prompt in enumerate(prompts):
        mine = range(index * count, (index + 1) * count)
        best = sequences[max(mine, key=scores.__getitem__)]
        chosen.append({"input_ids": best, "labels": [-100] * len(prompt) + best[len(prompt) :]})
    return chosen


def train_policy(peer: PeerRound, chosen: list[dict]) -> int:
    step = peer.job["policy_step"]
    trainer = SFTTrainer(
        model=peer.policy,
        args=SFTConfig(**peer.training("policy-trainer", step["batch_sequences"], step["learning_rate"][0])),
        train_dataset=datasets.Dataset.from_list(chosen),
        processing_class=peer.tokenizer,
    )
    trainer.train()
    trainer.save_model(str(peer.out / "policy"))
    return trainer.state.global_step


def main() -> None:
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    out.mkdir(parents=True)
    logging.disable_progress_bar()
    torch.set_num_threads(job["resources"]["ranks"] * job["resources"]["threads_per_rank"])
    peer = PeerRound(job, out)
    golden = rows(job["data"]["golden"][0])
    golden_prompts = [peer.text.ids(row["prompt"]) for row in golden]
    pairs, reward_steps = train_reward(peer, peer.samples(golden_prompts), golden, golden_prompts)
    prompts = [peer.text.ids(row["prompt"]) for row in rows(job["data"]["prompts"][0])]
    samples = peer.samples(prompts)
    chosen = best_of(peer, prompts, samples)
    policy_steps = train_policy(peer, chosen)
    done = account(pairs, reward_steps, sum(map(len, samples)), len(chosen), policy_steps)
    (out / COUNTS).write_text(json.dumps(done))


if __name__ == "__main__":
    main()
