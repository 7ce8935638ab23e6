"""The lean peer: reward and DPO training written carefully in plain PyTorch.

Chosen and rejected rows share one right-padded forward pass. There is no attention mask, because a causal model ignores what
follows a row, so attention uses its fastest kernel. Heads are applied only where a loss needs them, and AdamW is fused.
With world 2 the loss is wrapped in DistributedDataParallel over Gloo (NCCL on GPUs).
"""

import copy

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from peers import models
from peers.serve import Repetition, Stopwatch, serve
from peers.workload import Batch, Workload, logical_tokens, unused_token


class Reward(nn.Module):
    """Bradley-Terry: the mean of −log σ(r_chosen − r_rejected), with the reward at a row's last token."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.backbone = models.backbone(workload)
        self.score = nn.Linear(self.backbone.config.hidden_size, 1, bias=False, device=workload.device)
        with torch.no_grad():
            self.score.weight.copy_(models.score_weight(workload))

    def forward(self, tokens, _starts, ends):
        hidden = self.backbone(input_ids=tokens, use_cache=False).last_hidden_state  # [2 · pairs, longest, hidden]
        last = hidden[torch.arange(len(ends), device=ends.device), ends - 1]
        # Only a few numbers determine the loss; rounding them would not save anything.
        with torch.autocast(tokens.device.type, enabled=False):
            chosen, rejected = self.score(last.float()).squeeze(-1).chunk(2)
        return -functional.logsigmoid(chosen - rejected).mean()


class Dpo(nn.Module):
    """DPO: the mean of −log σ(β · Δ), Δ the difference of log-ratios to the reference, summed over answer tokens."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.beta = workload.beta
        self.policy = models.causal_model(workload)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def forward(self, tokens, starts, ends):
        with torch.no_grad():
            reference = answer_log_probs(self.reference, tokens, starts, ends)
        ratios = answer_log_probs(self.policy, tokens, starts, ends) - reference
        chosen, rejected = ratios.chunk(2)
        return -functional.logsigmoid(self.beta * (chosen - rejected)).mean()


def answer_log_probs(model: nn.Module, tokens, starts, ends) -> torch.Tensor:
    """log π(answer | prompt) of each row, [rows]. Logits are computed only for the tokens of answers."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    positions = torch.arange(tokens.shape[1] - 1, device=tokens.device)
    answers = (positions >= starts[:, None] - 1) & (positions < ends[:, None] - 1)  # position t predicts token t + 1
    logits = model.lm_head(hidden[:, :-1][answers])  # [answer tokens, vocabulary]
    log_probs = -functional.cross_entropy(logits.float(), tokens[:, 1:][answers], reduction="none")
    return torch.zeros(len(tokens), device=tokens.device).index_add(0, answers.nonzero()[:, 0], log_probs)


def share(batch: Batch, workload: Workload) -> Batch:
    """This rank's rows, in equal shares, so that the mean of the ranks' means is the batch's mean."""
    if len(batch) % workload.world:
        raise SystemExit(f"a batch of {len(batch)} pairs does not divide among {workload.world} ranks")
    return batch[workload.rank :: workload.world]


def load(workload: Workload) -> Repetition:
    if workload.world > 1:
        backend = "nccl" if workload.device == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"tcp://{workload.rendezvous}", world_size=workload.world, rank=workload.rank)
    shares = [share(batch, workload) for batch in workload.batches]
    pad = unused_token(workload)
    tokens = logical_tokens(workload.pairs)

    def repetition() -> dict:
        # Loaded again each time, for the same start without a second copy of the weights in memory.
        loss_of = {"reward": Reward, "dpo": Dpo}[workload.work](workload)
        trained = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
        step = models.optimizer(workload, trained)
        if workload.world > 1:
            loss_of = DistributedDataParallel(loss_of)
        clock, losses = Stopwatch(workload.device), []
        with clock.running():
            for batch in shares:
                with models.autocast(workload):
                    loss = loss_of(*models.padded(batch, pad, workload.device))
                loss.backward()
                if workload.clip is not None:
                    nn.utils.clip_grad_norm_(trained, workload.clip)
                step.step()
                step.zero_grad()
                losses.append(loss.detach())
        return {"seconds": clock.seconds, "tokens": tokens, "losses": [loss.item() for loss in losses]}

    return repetition


if __name__ == "__main__":
    serve(load)
