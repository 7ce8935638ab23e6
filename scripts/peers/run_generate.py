"""The peer for generation: transformers' generate, as shipped.

    run_generate [--static | --continuous] WORKLOAD.json

Prompts of different lengths are padded on the left into one batch. --static keeps keys and values in a cache of fixed
size, for which transformers compiles the model; --continuous uses generate_batch, where finished rows leave the batch. Both
are for GPUs. New tokens are counted up to and including the token that ends an answer, without the padding after it.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from peers.serve import Repetition, Stopwatch, serve
from peers.workload import Workload, unused_token

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def settings(workload: Workload, pad: int, static: bool) -> GenerationConfig:
    """Sets every field that shapes the distribution, because a model directory may contain its own defaults."""
    sampling = dict(do_sample=True, temperature=workload.temperature, top_k=0, top_p=1.0)
    return GenerationConfig(
        **(sampling if workload.temperature > 0 else dict(do_sample=False)),
        num_return_sequences=workload.samples,
        max_new_tokens=workload.max_new,
        min_new_tokens=workload.min_new or None,
        eos_token_id=workload.eos,
        pad_token_id=pad,
        cache_implementation="static" if static else None,
    )


def left_padded(prompts: list[list[int]], pad: int, device: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    rows = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}


def until_end(answer: list[int], eos: list[int]) -> list[int]:
    """An answer including EOS, without anything after it."""
    end = next((position for position, token in enumerate(answer) if token in eos), len(answer))
    return answer[: end + 1]


def load(workload: Workload) -> Repetition:
    static, continuous = "--static" in sys.argv, "--continuous" in sys.argv
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=DTYPES[workload.precision])
    model = model.to(workload.device).eval()
    pad = unused_token(workload)
    how = settings(workload, pad, static)

    def whole_batch() -> list[list[int]]:
        batch = left_padded(workload.prompts, pad, workload.device)
        rows = model.generate(**batch, generation_config=how)
        return rows[:, batch["input_ids"].shape[1] :].tolist()

    def in_and_out() -> list[list[int]]:
        # Each sample is a separate request; equal prefixes share their cache blocks.
        requests = [prompt for prompt in workload.prompts for _ in range(workload.samples)]
        outputs = model.generate_batch(requests, settings(workload.with_(samples=1), pad, static)).values()
        if len(outputs) < len(requests) or any(output.error for output in outputs):
            raise SystemExit(f"generate_batch answered only {len(outputs)} of {len(requests)} requests without error")
        return [output.generated_tokens for output in outputs]

    def repetition() -> dict:
        torch.manual_seed(workload.seed)
        clock = Stopwatch(workload.device)
        with clock.running(), torch.inference_mode():
            rows = in_and_out() if continuous else whole_batch()
        answers = [until_end(row, workload.eos) for row in rows]
        metrics = {"seconds": clock.seconds, "tokens": sum(map(len, answers))}
        if workload.temperature == 0:
            # Samples of one prompt are adjacent and all the same.
            metrics["tokens_out"] = answers[:: workload.samples]
        return metrics

    return repetition


if __name__ == "__main__":
    serve(load)
