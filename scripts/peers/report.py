"""Reports: a table for the terminal, one for RESULTS.md, and all metrics as JSON."""

import dataclasses
import json
import sys
from pathlib import Path

from peers.case import Measure, Outcome, Spread
from peers.machine import Limits
from peers.table import Table

HEADS = ("implementation", "rate", "min – max", "Foil speedup", "peak MiB", "of limit", "parity")
NOTES = """\
- Rates are medians over repetitions of unpadded tokens per second; the spread is the slowest and the fastest one.
- "Foil speedup" is Foil's rate over that of the implementation. Repetitions of all implementations alternate.
- Peak memory is the process's largest resident set (VmHWM), libraries included; of several processes the sum.
- "of limit" is the minimum arithmetic of the workload (prompts once, no padding) relative to the machine's matrix products.
- Every repetition starts from the loaded weights; loading and the making of trainers are not timed.
- A case whose losses or greedy tokens disagree is VOID: its speeds are meaningless.
"""


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines_of(outcome: Outcome, measure: Measure, limits: Limits) -> list[tuple[str, ...]]:
    """One line per implementation, with the columns of HEADS."""
    foil = next((c.name for c in outcome.case.implementations if c.is_foil), None)
    ours = outcome.rate(foil, measure) if foil else None
    lines = []
    for name, record in outcome.records.items():
        rate, fraction = outcome.rate(name, measure), outcome.limit_fraction(name, limits)
        verdict = outcome.verdicts.get(name)
        lines.append(
            (
                name,
                "FAILED" if rate is None else number(rate.median),
                "" if rate is None else f"{number(rate.min)} – {number(rate.max)}",
                times(ours, rate),
                "" if record.peak_bytes is None else f"{record.peak_bytes / 2**20:,.0f}",
                "" if fraction is None else f"{fraction:.0%}",
                "" if verdict is None else verdict.text if verdict.agrees else f"VOID: {verdict.text}",
            )
        )
    return lines


def times(ours: Spread | None, theirs: Spread | None) -> str:
    return "" if ours is None or theirs is None else f"{ours.median / theirs.median:.2f} ×"


def turns(outcome: Outcome) -> str:
    plural = "" if outcome.warm_ups == 1 else "s"
    return f"{outcome.warm_ups} warm-up{plural}, {outcome.repetitions} repetitions"


def show_machine(table: Table) -> None:
    print(table.machine)
    if table.machine.warning:
        print(f"warning: {table.machine.warning}")


def show_end(table: Table) -> None:
    for row, why in table.skipped.items():
        print(f"\n{row}: skipped: {why}")
    print(f"\nmatrix products: {describe_limits(table.limits)}")


def show_latest(table: Table) -> None:
    """Prints the latest case."""
    outcome, limits = table.outcomes[-1], table.limits
    case = outcome.case
    print(f"\n{case.key}: {case.title} ({case.precision}; {turns(outcome)})")
    if case.note:
        print(f"  {case.note}")
    for measure in case.measures:
        print(aligned([(HEADS[0], measure.unit, *HEADS[2:]), *lines_of(outcome, measure, limits)]))
    for failure in outcome.failures:
        print(f"  FAILED: {failure}")
    if outcome.void:
        print("  VOID: implementations disagree, so the speeds above do not count")
    sys.stdout.flush()


def aligned(table: list[tuple[str, ...]]) -> str:
    """Names and verdicts left-aligned, metrics right-aligned."""
    widths = [max(map(len, column)) for column in zip(*table)]

    def line(cells: tuple[str, ...]) -> str:
        first, *metrics, last = zip(cells, widths)
        middle = (text.rjust(width) for text, width in metrics)
        return "  " + "  ".join([first[0].ljust(first[1]), *middle, last[0]]).rstrip()

    return "\n".join(map(line, table))


def summary(outcome: Outcome, limits: Limits) -> dict:
    """All metrics of a case and of its repetitions, for JSON."""
    case = outcome.case

    def record(name: str) -> dict:
        made, verdict = outcome.records[name], outcome.verdicts.get(name)
        rates = {measure.unit: outcome.rate(name, measure) for measure in case.measures}
        return {
            "rates": {unit: rate and dataclasses.asdict(rate) for unit, rate in rates.items()},
            "of_limit": outcome.limit_fraction(name, limits),
            "peak_bytes": made.peak_bytes,
            "parity": verdict and dataclasses.asdict(verdict),
            "failure": made.failure,
            "repetitions": made.repetitions,
        }

    return {
        "case": case.key,
        "title": case.title,
        "precision": case.precision,
        "note": case.note,
        "warm_ups": outcome.warm_ups,
        "void": outcome.void,
        "implementations": {name: record(name) for name in outcome.records},
        "checks": {name: check.repetitions or check.failure for name, check in outcome.checks.items()},
    }


def write_json(path: Path, table: Table) -> None:
    whole = {
        "machine": dataclasses.asdict(table.machine),
        "matrix_products_flops": table.limits,
        "cases": [summary(outcome, table.limits) for outcome in table.outcomes],
        "skipped": table.skipped,
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")


def describe_limits(limits: Limits) -> str:
    return ", ".join(f"{precision} {speed / 1e9:,.0f} GFLOP/s" for precision, speed in limits.items())


def write_results(path: Path, table: Table) -> None:
    """The last full table, for readers."""
    head = [
        "# Benchmarks of Foil and its peers\n",
        f"Made by {origin(table)}.{warning(table)}\n",
        f"Matrix products of this machine: {describe_limits(table.limits)}.\n",
        NOTES,
    ]
    sections = [section(outcome, table) for outcome in table.outcomes]
    left_out = [f"`{row}` was skipped: {why}.\n" for row, why in table.skipped.items()]
    path.write_text("\n".join([*head, *sections, *left_out]))


def update_results(path: Path, table: Table) -> None:
    """Replaces the cases of an earlier table by those of this run, with the origin of each."""
    head, *sections = path.read_text().split("\n## ")
    sections = {section_key(text): text for text in sections}
    ran = f"Run separately, by {origin(table)}; matrix products: {describe_limits(table.limits)}.{warning(table)}\n"
    for outcome in table.outcomes:
        title, rest = section(outcome, table).removeprefix("## ").split("\n", 1)
        sections[outcome.case.key] = f"{title}\n\n{ran}{rest}"
    path.write_text("\n## ".join([head, *(text.rstrip("\n") + "\n" for text in sections.values())]))


def section_key(text: str) -> str:
    """The case of the section that begins with this text."""
    return text.split("\n", 1)[0].removeprefix("**VOID** ")


def origin(table: Table) -> str:
    return f"`{table.machine.command}` on {table.machine}"


def warning(table: Table) -> str:
    return f" **{table.machine.warning}.**" if table.machine.warning else ""


def section(outcome: Outcome, table: Table) -> str:
    case = outcome.case
    void = "**VOID** " if outcome.void else ""
    parts = [f"## {void}{case.key}\n\n{case.title} ({case.precision}; {turns(outcome)}).\n"]
    if case.note:
        parts.append(f"{case.note[0].upper()}{case.note[1:]}.\n")
    for measure in case.measures:
        parts.append(markdown((HEADS[0], measure.unit, *HEADS[2:]), lines_of(outcome, measure, table.limits)))
    parts.extend(f"FAILED: {failure.splitlines()[0]}\n" for failure in outcome.failures)
    return "\n".join(parts)


def markdown(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rule = ["---", *["---:"] * 5, "---"]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *lines))
