"""Row `weights`: a model's weights, written to files and read back, and kept from one phase to the next."""

from functools import partial

from peers import parity
from peers.case import Case, Measure
from peers.setting import Setting

MEASURES = tuple(
    Measure(
        f"MB/s {what}",
        lambda metrics: metrics["bytes"] / 1e6,
        lambda metrics, key=f"{key}_seconds": metrics[key],
    )
    for what, key in (("load", "load"), ("save", "save"), ("between phases", "gap"))
)


def files_case(setting: Setting) -> Case:
    name = setting.pick("smollm2-135m", "stories15m")
    workload = setting.workload(setting.model(name), "weights")
    return Case(
        key="weights",
        title=f"weights of {name} to the page cache and back",
        precision="fp32",
        implementations=[*setting.foil(workload), setting.peer("safetensors", "run_weights", workload)],
        checks=[],
        parity=parity.nothing_to_compare,
        measures=MEASURES,
        note="Foil hashes the file and the parameters while it saves, and between phases keeps them on the device; "
        "safetensors hashes nothing, and reads them again",
    )


def weights(setting: Setting) -> list:
    return [partial(files_case, setting)]
