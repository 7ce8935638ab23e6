"""Row `checkpoint`: writing a checkpoint to disk and reading it back, compared with the disk alone."""

from functools import partial

from peers import parity
from peers.case import Case, Measure
from peers.setting import Setting

MEASURES = tuple(
    Measure(
        f"MB/s {direction}",
        lambda metrics: metrics["bytes"] / 1e6,
        lambda metrics, key=f"{direction}_seconds": metrics[key],
    )
    for direction in ("write", "read")
)


def disk_case(setting: Setting) -> Case:
    name = setting.pick("smollm2-135m", "stories15m")
    model = setting.model(name)
    workload = setting.workload(model, "checkpoint")
    return Case(
        key="checkpoint",
        title=f"checkpoint of {name}, fsync counted, read with an empty page cache",
        precision="fp32",
        implementations=[
            *setting.foil(workload),
            setting.peer("torch.save", "run_checkpoint", workload),
            setting.peer("disk alone", "run_checkpoint", workload, "--raw"),
        ],
        checks=[],
        parity=parity.nothing_to_compare,
        measures=MEASURES,
        note="torch.save and the disk alone write weights and both AdamW moments; rates count each one's own bytes",
    )


def checkpoint(setting: Setting) -> list:
    return [partial(disk_case, setting)]
