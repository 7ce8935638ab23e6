"""Checks that implementations computed the same results. A speed without agreement is void.

A case names its reference: for losses the lean PyTorch loop, for greedy tokens transformers' generate.
"""

import dataclasses
import math
from collections.abc import Callable

# fp32 losses of two implementations: relative, at every step.
LOSS_TOLERANCE = 1e-3
# Maximum distance of a bf16 run from the fp32 losses, relative to its peers.
BF16_FACTOR = 1.5
# Maximum distance that rounding to bf16 explains. Beyond it, an implementation, peers included, computed something else.
BF16_FARTHEST = 0.1
# Repetitions start from the same weights, so only the order of sums in threads may differ.
REPEAT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Verdict:
    agrees: bool
    text: str


def nothing_to_compare(records, _checks) -> dict[str, Verdict]:
    return {}


def relative(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference; infinite if lengths differ or a number is not finite."""
    if len(ours) != len(theirs) or not all(map(math.isfinite, ours + theirs)):
        return math.inf
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


def distance(ours: list[float], exact: list[float]) -> float:
    """‖ours − exact‖ / ‖exact‖ over the steps."""
    if len(ours) != len(exact) or not all(map(math.isfinite, ours)):
        return math.inf
    return math.dist(ours, exact) / math.hypot(*exact)


def unsound(record, tokens: int) -> Verdict | None:
    """A verdict on an implementation that did different work, or whose repetitions did not start from the same state."""
    if record.first["tokens"] != tokens:
        return Verdict(False, f"trained on {record.first['tokens']:,} tokens instead of {tokens:,}")
    widest = max(relative(metrics["losses"], record.first["losses"]) for metrics in record.repetitions)
    if widest > REPEAT_TOLERANCE:
        return Verdict(False, f"its own repetitions differ by {widest:.1e}")
    return None


def missing(names, what: str) -> dict[str, Verdict]:
    return {name: Verdict(False, f"{what} failed, so that nothing can be compared") for name in names}


def fp32_losses(reference: str, tokens: int) -> Callable[..., dict[str, Verdict]]:
    """Compares every implementation's losses on this number of tokens with the reference's, step by step."""

    def compare(records, _checks) -> dict[str, Verdict]:
        if reference not in records:
            return missing(records, reference)
        theirs = records[reference].first["losses"]
        verdicts = {}
        for name, record in records.items():
            difference = relative(record.first["losses"], theirs)
            text = f"losses within {difference:.1e} of {reference}" if name != reference else "reference"
            verdicts[name] = unsound(record, tokens) or Verdict(difference <= LOSS_TOLERANCE, text)
        return verdicts

    return compare


def bf16_losses(exact: str, reference: str, tokens: int) -> Callable[..., dict[str, Verdict]]:
    """Compares the distances of Foil and its peers from exact losses, on the checks' many small steps.

    The check named `exact` is an fp32 run; the others are the implementations' bf16 runs of the same steps. The distance of
    a few losses from exact ones is mostly luck, up to a factor of 4 either way for two of them; over two dozen it
    shows how precise a program is. Foil's distance is compared with the largest one of the peers, or with the
    tolerance of fp32 if that is larger.
    """

    def compare(records, checks) -> dict[str, Verdict]:
        if exact not in checks or reference not in records:
            return missing(records, f"{exact} or {reference}")
        fp32 = checks[exact].first["losses"]
        distances = {name: distance(check.first["losses"], fp32) for name, check in checks.items() if name != exact}
        peers = [far for name, far in distances.items() if not name.startswith("foil") and far <= BF16_FARTHEST]
        foils = max(BF16_FACTOR * max(peers, default=0.0), LOSS_TOLERANCE)
        timed = records[reference].first["losses"]
        return {
            name: unsound(record, tokens)
            or astray(record.first["losses"], timed)
            or near_enough(distances.get(name), foils if name.startswith("foil") else BF16_FARTHEST)
            for name, record in records.items()
        }

    return compare


def astray(ours: list[float], theirs: list[float]) -> Verdict | None:
    """A verdict on timed losses that rounding does not explain."""
    difference = relative(ours, theirs)
    return Verdict(False, f"its timed losses differ by {difference:.1e}") if difference > BF16_FARTHEST else None


def near_enough(far: float | None, bound: float) -> Verdict:
    if far is None:
        return Verdict(False, "its check failed")
    return Verdict(far <= bound, f"{far:.1e} from fp32 losses, at most {bound:.1e}")


def greedy_tokens(reference: str, of_checks: bool) -> Callable[..., dict[str, Verdict]]:
    """Compares every token of greedy answers: those of the checks, or those of the case itself if it is greedy."""

    def compare(records, checks) -> dict[str, Verdict]:
        answers = {name: record.first["tokens_out"] for name, record in (checks if of_checks else records).items()}
        if reference not in answers:
            return missing(records, reference)
        failed = Verdict(False, "its greedy run failed")
        compared = {name: same_tokens(ours, answers[reference], name == reference) for name, ours in answers.items()}
        return {name: compared.get(name, failed) for name in records}

    return compare


def same_tokens(ours: list[list[int]], theirs: list[list[int]], is_reference: bool) -> Verdict:
    count = sum(map(len, theirs))
    if is_reference:
        return Verdict(True, f"reference, {count} greedy tokens")
    if len(ours) != len(theirs):
        return Verdict(False, f"{len(ours)} answers instead of {len(theirs)}")
    for row, (mine, other) in enumerate(zip(ours, theirs)):
        if mine != other:
            at = next((i for i, (a, b) in enumerate(zip(mine, other)) if a != b), min(len(mine), len(other)))
            return Verdict(False, f"greedy answer {row} differs from token {at} on")
    return Verdict(True, f"all {count} greedy tokens agree")


def same_counts(reference: str) -> Callable[..., dict[str, Verdict]]:
    """For work with random draws: checks the numbers of pairs, samples and steps against the reference."""

    def compare(records, _checks) -> dict[str, Verdict]:
        if reference not in records:
            return missing(records, reference)
        theirs = records[reference].first["counts"]
        return {name: same_count(record.first["counts"], theirs) for name, record in records.items()}

    return compare


def same_count(ours: dict[str, int], theirs: dict[str, int]) -> Verdict:
    differing = [what for what, count in theirs.items() if ours.get(what) != count]
    if differing:
        return Verdict(False, ", ".join(f"{ours.get(what)} {what} instead of {theirs[what]}" for what in differing))
    return Verdict(True, "same work: " + ", ".join(f"{count} {what}" for what, count in ours.items()))
