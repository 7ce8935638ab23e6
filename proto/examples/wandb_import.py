"""Brings a job's TensorBoard event files into a run of Weights & Biases.

usage: wandb_import.py DIRECTORY RUN_ID [PROJECT]

DIRECTORY is `tensorboard` in the directory of a `foil run`, or what `foil pull JOB/tensorboard DIRECTORY` has written. RUN_ID names
the run at W&B; the job's id is a good one. With WANDB_MODE=offline nothing is sent, and `wandb sync` sends it later. Call it once,
when the job has ended.
"""

import sys

import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

directory, run_id = sys.argv[1:3]
project = sys.argv[3] if len(sys.argv) > 3 else "foil"

events = EventAccumulator(directory, size_guidance={"scalars": 0})
events.Reload()
run = wandb.init(project=project, id=run_id)
# W&B counts the calls of log. Metrics of training have the optimizer steps of their model as their axis, all others the rounds.
rows: dict[tuple[str, int], dict[str, float]] = {}
for tag in events.Tags()["scalars"]:
    model, part = tag.split("/")[:2]
    axis = f"{model}/step" if part == "train" else "round"
    run.define_metric(tag, step_metric=axis)
    for point in events.Scalars(tag):
        rows.setdefault((axis, point.step), {})[tag] = point.value
for (axis, at), values in sorted(rows.items()):
    run.log({axis: at, **values})
run.finish()
