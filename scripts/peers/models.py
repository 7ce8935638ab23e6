"""Code shared by the peers that train: loading models with transformers, and the shapes of a batch."""

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from peers.workload import Batch, Workload

logging.disable_progress_bar()


def score_weight(workload: Workload) -> torch.Tensor:
    """The initial reward head of both sides, [1, hidden]."""
    return load_file(workload.score)["score.weight"]


def backbone(workload: Workload) -> torch.nn.Module:
    """The decoder without a head. Loaded in fp32: autocast computes products in bf16, but weights are stored in fp32."""
    return AutoModel.from_pretrained(workload.model, dtype=torch.float32).to(workload.device)


def causal_model(workload: Workload) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).to(workload.device)


def autocast(workload: Workload) -> torch.autocast:
    return torch.autocast(workload.device, torch.bfloat16, enabled=workload.precision == "bf16")


def optimizer(workload: Workload, parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=workload.learning_rate,
        betas=tuple(workload.betas),
        eps=workload.eps,
        weight_decay=workload.weight_decay,
        fused=True,
    )


def padded(batch: Batch, pad: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chosen rows, then rejected rows, padded on the right.

    Returns tokens [2 · pairs, longest], and for each row where its answer begins and where it ends, [2 · pairs].
    """
    rows = [pair["prompt"] + pair[kind] for kind in ("chosen", "rejected") for pair in batch]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    starts = torch.tensor([len(pair["prompt"]) for pair in batch] * 2, device=device)
    return tokens, starts, torch.tensor([len(row) for row in rows], device=device)
