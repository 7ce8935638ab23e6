"""Rows `generate` and `eos`: n samples for each prompt, of fixed length or until the model stops."""

from functools import partial
from pathlib import Path

from peers import data, flops, parity
from peers.case import Case
from peers.data import Text
from peers.process import Implementation
from peers.setting import Setting
from peers.workload import Workload

MODEL = "stories15m"
PROMPTS, SAMPLES = 32, 4
# stories15M has 256 positions: a prompt and 240 new tokens just fit.
LONGEST_PROMPT = 16
CAP = 240


def implementations(setting: Setting, workload: Workload) -> list[Implementation]:
    made = setting.foil(workload) + [setting.peer("generate", "run_generate", workload)]
    if setting.device == "cuda":
        made.append(setting.peer("generate, static cache", "run_generate", workload, "--static"))
        made.append(setting.peer("generate_batch", "run_generate", workload, "--continuous"))
    return made


def min_arithmetic(workload: Workload):
    shape = flops.Shape.of(Path(workload.model))
    return lambda metrics: flops.generation(shape, workload.prompts, workload.samples, metrics["tokens"])


def fixed_length(setting: Setting, precision: str) -> Case:
    model = setting.model(MODEL)
    prompts = data.story_beginnings(setting.data, Text(model), PROMPTS, (LONGEST_PROMPT, LONGEST_PROMPT))
    new = setting.pick(128, 32)
    sampled = setting.workload(model, "generate", precision=precision, prompts=prompts, samples=SAMPLES, max_new=new, min_new=new)
    made = implementations(setting, sampled)
    return Case(
        key=f"generate.{precision}",
        title=f"best-of-n generation, {MODEL}, {PROMPTS} prompts × {SAMPLES} × {new} tokens",
        precision=precision,
        implementations=made,
        checks=greedy_checks(made, sampled),
        parity=greedy_parity(precision, of_checks=True),
        flops=min_arithmetic(sampled),
    )


def greedy_checks(made: list[Implementation], sampled: Workload) -> list[Implementation]:
    """Samples of two libraries cannot agree token by token; greedy answers to the same prompts must."""
    if sampled.precision != "fp32":
        return []
    greedy = sampled.with_(temperature=0.0, samples=1, max_new=32, min_new=min(32, sampled.min_new))
    return [implementation.on(greedy) for implementation in made]


def greedy_parity(precision: str, of_checks: bool):
    """In bf16 a near tie may go either way, and one token changes all that follow, so only fp32 is compared."""
    return parity.greedy_tokens("generate", of_checks) if precision == "fp32" else parity.nothing_to_compare


def natural_end(setting: Setting, precision: str, temperature: float) -> Case:
    model = setting.model(MODEL)
    prompts = data.story_beginnings(setting.data, Text(model), PROMPTS, (3, LONGEST_PROMPT))
    samples = SAMPLES if temperature > 0 else 1
    workload = setting.workload(
        model,
        "generate",
        precision=precision,
        prompts=prompts,
        samples=samples,
        max_new=setting.pick(CAP, 96),
        temperature=temperature,
    )
    made = implementations(setting, workload)
    how = "sampled" if temperature > 0 else "greedy"
    return Case(
        key=f"eos.{how}.{precision}",
        title=f"{how} until EOS or {workload.max_new} tokens, {MODEL}, {PROMPTS} prompts of 3 to {LONGEST_PROMPT} tokens × {samples}",
        precision=precision,
        implementations=made,
        checks=greedy_checks(made, workload) if temperature > 0 else [],
        parity=greedy_parity(precision, of_checks=temperature > 0),
        flops=min_arithmetic(workload),
        note="draws differ between libraries, and so do lengths: compare tokens/s" if temperature > 0 else "",
        # Up to 30,720 tokens in a repetition.
        max_warm_ups=1,
        max_repetitions=3,
    )


def generate(setting: Setting) -> list:
    return [partial(fixed_length, setting, precision) for precision in setting.precisions if wanted(setting, precision)]


def eos(setting: Setting) -> list:
    precisions = [precision for precision in setting.precisions if wanted(setting, precision)]
    temperatures = setting.pick((1.0, 0.0), (0.0,))
    return [partial(natural_end, setting, p, temperature) for p in precisions for temperature in temperatures]


def wanted(setting: Setting, precision: str) -> bool:
    """CPUs are compared in fp32, where greedy answers can be checked, and in bf16 only if requested."""
    return precision == "fp32" or setting.device == "cuda" or setting.precisions == ("bf16",)
