"""The peer as shipped: TRL's RewardTrainer and DPOTrainer on the workload's token rows.

    run_trl [--precompute] WORKLOAD.json

Only training steps and the reference pass are timed, not the loading of models or the construction of a trainer.
Steps are timed from the trainer's on_train_begin to its on_train_end; with --precompute DPOTrainer computes all
reference log-probabilities beforehand, and that pass is timed too.

Departures from the defaults, all in favor of TRL: no gradient checkpointing, no logging, no saving.
"""

import sys
import tempfile
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from peers import models
from peers.serve import Repetition, Stopwatch, serve
from peers.workload import Batch, Workload, logical_tokens, unused_token


class TimesTraining(TrainerCallback):
    def __init__(self, clock: Stopwatch):
        self.clock = clock

    def on_train_begin(self, *_, **__):
        self.clock.start()

    def on_train_end(self, *_, **__):
        self.clock.stop()


class Recorded:
    """A mixin for trainers: rows are already tokens, and every step's loss is kept unrounded."""

    def __init__(self, *arguments, clock: Stopwatch, **keywords):
        self.clock, self.losses = clock, []
        super().__init__(*arguments, callbacks=[TimesTraining(clock)], **keywords)

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def compute_loss(self, *arguments, **keywords):
        loss = super().compute_loss(*arguments, **keywords)
        self.losses.append(loss.detach())
        return loss


class RecordedReward(Recorded, RewardTrainer):
    pass


class RecordedDpo(Recorded, DPOTrainer):
    def _precompute_ref_logps(self, *arguments):
        with self.clock.running():
            return super()._precompute_ref_logps(*arguments)


def common_settings(workload: Workload, scratch: Path) -> dict:
    if len({len(batch) for batch in workload.batches[:-1]}) > 1:
        raise SystemExit("TRL's batches have one size; this workload's differ")
    return dict(
        output_dir=str(scratch),
        use_cpu=workload.device == "cpu",
        bf16=workload.precision == "bf16",
        per_device_train_batch_size=len(workload.batches[0]),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta1=workload.betas[0],
        adam_beta2=workload.betas[1],
        adam_epsilon=workload.eps,
        weight_decay=workload.weight_decay,
        max_grad_norm=workload.clip or 0.0,
        max_length=None,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def tokenizer(workload: Workload):
    """A tokenizer whose pad token occurs in no row, because pooling looks for the last token that is not padding."""
    made = AutoTokenizer.from_pretrained(workload.model)
    made.pad_token = made.convert_ids_to_tokens(unused_token(workload))
    return made


def reward_trainer(workload: Workload, scratch: Path, clock: Stopwatch) -> RecordedReward:
    model = AutoModelForSequenceClassification.from_pretrained(workload.model, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(models.score_weight(workload))
    return RecordedReward(
        model=model,
        args=RewardConfig(**common_settings(workload, scratch)),
        train_dataset=datasets.Dataset.from_list(whole_rows(workload.pairs)),
        processing_class=tokenizer(workload),
        clock=clock,
    )


def whole_rows(pairs: Batch) -> list[dict[str, list[int]]]:
    return [{f"{kind}_ids": pair["prompt"] + pair[kind] for kind in ("chosen", "rejected")} for pair in pairs]


def dpo_trainer(workload: Workload, scratch: Path, clock: Stopwatch, precompute: bool) -> RecordedDpo:
    rows = [{f"{part}_ids": ids for part, ids in pair.items()} for pair in workload.pairs]
    # Without precomputed log-probabilities, the trainer itself loads a second model, from the path in the first one's configuration.
    return RecordedDpo(
        model=models.causal_model(workload),
        args=DPOConfig(**common_settings(workload, scratch), beta=workload.beta, precompute_ref_log_probs=precompute),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(workload),
        clock=clock,
    )


def load(workload: Workload) -> Repetition:
    precompute = "--precompute" in sys.argv[1:]
    # Otherwise the second repetition would read the first one's reference pass from a file.
    datasets.disable_caching()
    tokens = logical_tokens(workload.pairs)

    def repetition() -> dict:
        clock = Stopwatch(workload.device)
        with tempfile.TemporaryDirectory() as scratch:
            if workload.work == "reward":
                trainer = reward_trainer(workload, Path(scratch), clock)
            else:
                trainer = dpo_trainer(workload, Path(scratch), clock, precompute)
            trainer.train()
        return {"seconds": clock.seconds, "tokens": tokens, "losses": [loss.item() for loss in trainer.losses]}

    return repetition


if __name__ == "__main__":
    serve(load)
