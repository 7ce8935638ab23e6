"""Row `parallel`: the same step by one process with all threads and by two processes with half of the threads each."""

from functools import partial

from peers import flops
from peers.case import Case
from peers.row_train import describe, losses_parity, spread_batches, training
from peers.setting import Setting
from peers.table import NotHere

PAIRS = 16
WORLD = 2


def step_contest(setting: Setting, precision: str) -> Case:
    require_room(setting)
    model = setting.model("stories15m")
    batches = spread_batches(setting, model, setting.pick(4, 1), by_length=False, size=PAIRS)
    whole, shape = training(setting, model, "reward", precision, batches)
    shared = whole.with_(world=WORLD, threads=setting.threads // WORLD)
    alone, together = f"1×{setting.threads}", f"{WORLD}×{shared.threads}"
    lean = f"lean {alone}"
    implementations = [
        *setting.foil(whole, f"foil {alone}"),
        *setting.foil(shared, f"foil {together}"),
        setting.peer(lean, "run_lean", whole),
        setting.peer(f"lean DDP {together}", "run_lean", shared),
    ]
    return Case(
        key=f"parallel.{precision}",
        title=f"data-parallel RM step, stories15m, processes × threads: {describe(batches)}",
        precision=precision,
        implementations=implementations,
        flops=lambda _: flops.reward(shape, whole.pairs),
        note="a batch's losses are the mean over ranks; peak memory is the sum over them",
        **losses_parity(setting, whole, implementations, lean=lean),
    )


def require_room(setting: Setting) -> None:
    if setting.device == "cuda":
        import torch

        if torch.cuda.device_count() < WORLD:
            raise NotHere(f"the data-parallel step needs {WORLD} GPUs, and torch sees {torch.cuda.device_count()}")
    elif setting.threads % WORLD:
        raise NotHere(f"{setting.threads} threads do not divide among {WORLD} processes; give an even --threads")


def parallel(setting: Setting) -> list:
    return [partial(step_contest, setting, precision) for precision in setting.precisions]
