"""Rows `reward`, `dpo` and `smollm`: training steps on human pairs."""

from functools import partial
from pathlib import Path

from peers import data, flops, parity
from peers.case import Case
from peers.data import Text
from peers.process import Implementation
from peers.setting import Setting
from peers.workload import Batch, Workload, logical_tokens, unique_tokens

BATCH = 8
LEARNING_RATE = 1e-5


def spread_batches(setting: Setting, model: Path, count: int, by_length: bool, size: int = BATCH) -> list[Batch]:
    """`count` batches of consecutive rows, spread evenly over the whole file so that they represent it.

    With `by_length`, the file is sorted first, so that rows of one batch have similar lengths.
    """
    rows = list(data.preference_pairs(setting.data, Text(model)))
    if by_length:
        rows.sort(key=data.row_length)
    batches = data.batches(rows, size)[: len(rows) // size]
    return [batches[(2 * index + 1) * len(batches) // (2 * count)] for index in range(count)]


def describe(batches: list[Batch]) -> str:
    pairs = [pair for batch in batches for pair in batch]
    positions = sum(2 * len(batch) * max(map(data.row_length, batch)) for batch in batches)
    logical = logical_tokens(pairs)
    steps = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    return (
        f"{steps} of {len(batches[0])} pairs, {logical:,} tokens, {unique_tokens(pairs) / logical:.0%} of them"
        f" unique, right-padded batches {logical / positions:.0%} full"
    )


def losses_parity(setting: Setting, workload: Workload, implementations: list[Implementation], steps: int = 24, lean: str = "lean") -> dict:
    """The checks and the comparison: fp32 with the lean loop, bf16 with the lean loop's fp32 losses.

    bf16 is judged on `steps` steps of two pairs, which need far fewer rows than the same number of timed steps.
    """
    tokens = logical_tokens(workload.pairs)
    if workload.precision == "fp32":
        return dict(checks=[], parity=parity.fp32_losses(lean, tokens))
    small = workload.with_(batches=spread_batches(setting, Path(workload.model), steps, by_length=False, size=2))
    exact = setting.peer("lean fp32", "run_lean", small.with_(precision="fp32"))
    checks = [c.on(small.with_(world=c.task.world, threads=c.task.threads)) for c in implementations]
    return dict(checks=[exact, *checks], parity=parity.bf16_losses("lean fp32", lean, tokens))


def training(setting: Setting, model: Path, work: str, precision: str, batches: list[Batch]) -> tuple[Workload, flops.Shape]:
    shape = flops.Shape.of(model)
    workload = setting.workload(
        model,
        work,
        precision=precision,
        batches=batches,
        learning_rate=LEARNING_RATE,
        score=setting.reward_head(shape.hidden) if work == "reward" else None,
    )
    return workload, shape


def reward_contest(setting: Setting, precision: str, by_length: bool) -> Case:
    model = setting.model("stories15m")
    batches = spread_batches(setting, model, setting.pick(6, 2), by_length)
    workload, shape = training(setting, model, "reward", precision, batches)
    lean = setting.peer("lean", "run_lean", workload)
    # TRL's own grouping by length forms different batches, whose losses could not be compared.
    trl = [] if by_length else [setting.peer("trl", "run_trl", workload)]
    implementations = [*setting.foil(workload), *trl, lean]
    order = "sorted by length" if by_length else "file order"
    return Case(
        key=f"reward.{'sorted' if by_length else 'file'}.{precision}",
        title=f"RM training, stories15m, {order}: {describe(batches)}",
        precision=precision,
        implementations=implementations,
        flops=lambda _: flops.reward(shape, workload.pairs),
        **losses_parity(setting, workload, implementations),
    )


def dpo_contest(setting: Setting, precision: str) -> Case:
    model = setting.model("stories15m")
    batches = spread_batches(setting, model, setting.pick(3, 2), by_length=False)
    workload, shape = training(setting, model, "dpo", precision, batches)
    implementations = [*setting.foil(workload), *dpo_peers(setting, workload)]
    return Case(
        key=f"dpo.{precision}",
        title=f"DPO training, stories15m, file order: {describe(batches)}",
        precision=precision,
        implementations=implementations,
        flops=lambda _: flops.dpo(shape, workload.pairs),
        note="the reference pass is timed on all sides",
        # TRL takes ten times as long as the others.
        max_warm_ups=1,
        max_repetitions=3,
        **losses_parity(setting, workload, implementations),
    )


def dpo_peers(setting: Setting, workload: Workload) -> list[Implementation]:
    lean = setting.peer("lean", "run_lean", workload)
    if setting.quick:
        # TRL alone would take as long as everything else.
        return [lean]
    return [
        setting.peer("trl", "run_trl", workload),
        setting.peer("trl, precomputed", "run_trl", workload, "--precompute"),
        lean,
    ]


def smollm_contest(setting: Setting, precision: str) -> Case:
    model = setting.model("smollm2-135m")
    batches = spread_batches(setting, model, 2, by_length=False)
    workload, shape = training(setting, model, "reward", precision, batches)
    implementations = [*setting.foil(workload), setting.peer("lean", "run_lean", workload)]
    return Case(
        key=f"smollm.{precision}",
        title=f"RM training, smollm2-135m, file order: {describe(batches)}",
        precision=precision,
        implementations=implementations,
        flops=lambda _: flops.reward(shape, workload.pairs),
        max_warm_ups=1,
        max_repetitions=3,
        **losses_parity(setting, workload, implementations, steps=12),
    )


def reward(setting: Setting) -> list:
    orders = setting.pick((False, True), (False,))
    return [partial(reward_contest, setting, p, by_length) for by_length in orders for p in setting.precisions]


def dpo(setting: Setting) -> list:
    precisions = setting.pick(setting.precisions, setting.precisions[:1])
    return [partial(dpo_contest, setting, precision) for precision in precisions]


def smollm(setting: Setting) -> list:
    """This row measures bf16; fp32 only if requested."""
    return [partial(smollm_contest, setting, "bf16" if "bf16" in setting.precisions else "fp32")]
