"""A benchmark case: one workload, run by several implementations in alternating repetitions."""

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from peers.parity import Verdict
from peers.process import Implementation, ImplementationFailed, Running

# Metrics of one repetition, as printed by a runner.
Metrics = dict


@dataclasses.dataclass(frozen=True)
class Measure:
    """A rate, in `unit` per second, from an amount in the metrics of a repetition."""

    unit: str
    amount: Callable[[Metrics], float]
    seconds: Callable[[Metrics], float] = lambda metrics: metrics["seconds"]


TOKENS = Measure("tokens/s", lambda metrics: metrics["tokens"])


@dataclasses.dataclass
class Record:
    """The results of one implementation in one case."""

    name: str
    repetitions: list[Metrics] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None
    failure: str | None = None

    @property
    def first(self) -> Metrics:
        return self.repetitions[0]


Records = dict[str, Record]


@dataclasses.dataclass(frozen=True)
class Case:
    key: str  # row.what.precision
    title: str
    precision: str
    implementations: list[Implementation]
    # Run once without timing before the case, as the reference for the results.
    checks: list[Implementation]
    parity: Callable[[Records, Records], dict[str, Verdict]]
    measures: tuple[Measure, ...] = (TOKENS,)
    # The minimum arithmetic of a repetition, from its metrics.
    flops: Callable[[Metrics], float] | None = None
    note: str = ""
    # Long cases get fewer turns than requested.
    max_warm_ups: int | None = None
    max_repetitions: int | None = None

    def turns(self, warm_ups: int, repetitions: int) -> tuple[int, int]:
        """The number of warm-ups and repetitions."""
        return at_most(warm_ups, self.max_warm_ups), at_most(repetitions, self.max_repetitions)


def at_most(asked: int, most: int | None) -> int:
    return asked if most is None else min(asked, most)


@dataclasses.dataclass(frozen=True)
class Spread:
    median: float
    min: float
    max: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))


@dataclasses.dataclass
class Outcome:
    """The outcome of a case."""

    case: Case
    records: Records
    checks: Records
    verdicts: dict[str, Verdict]
    warm_ups: int
    repetitions: int

    @property
    def void(self) -> bool:
        return any(not verdict.agrees for verdict in self.verdicts.values())

    @property
    def failures(self) -> list[str]:
        return [r.failure for r in (*self.checks.values(), *self.records.values()) if r.failure]

    def rate(self, name: str, measure: Measure) -> Spread | None:
        record = self.records[name]
        if record.failure:
            return None
        return Spread.of([measure.amount(metrics) / measure.seconds(metrics) for metrics in record.repetitions])

    def limit_fraction(self, name: str, limits: dict[str, float]) -> float | None:
        """The minimum arithmetic per second, as a fraction of the machine's matrix-product speed."""
        record, flops = self.records[name], self.case.flops
        if record.failure or flops is None:
            return None
        speeds = [flops(metrics) / metrics["seconds"] for metrics in record.repetitions]
        return statistics.median(speeds) / limits[self.case.precision]


def run(case: Case, warm_ups: int, repetitions: int, scratch: Path) -> Outcome:
    """Runs the checks, then the case. An implementation that fails is excluded; the others continue."""
    warm_ups, repetitions = case.turns(warm_ups, repetitions)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{case.key}-") as directory:
        checks = {c.name: check(c, Path(directory)) for c in case.checks}
        records = {c.name: Record(c.name) for c in case.implementations}
        with contextlib.ExitStack() as stack:
            started = {}
            for implementation in case.implementations:
                with failing(records[implementation.name]):
                    started[implementation.name] = Running(implementation, Path(directory))
                    stack.callback(started[implementation.name].kill)
            for turn in range(warm_ups + repetitions):
                for name, running in started.items():
                    take_turn(records[name], running, case.measures, counts=turn >= warm_ups)
            for name, running in started.items():
                if not records[name].failure:
                    with failing(records[name]):
                        records[name].peak_bytes = running.quit()
    sound = {name: record for name, record in records.items() if not record.failure}
    verdicts = case.parity(sound, {name: record for name, record in checks.items() if not record.failure})
    return Outcome(case, records, checks, verdicts, warm_ups, repetitions)


def take_turn(record: Record, running: Running, measures: tuple[Measure, ...], counts: bool) -> None:
    if record.failure:
        return
    with failing(record):
        metrics = running.repetition()
        for measure in measures:
            require(record.name, measure, metrics)
        if counts:
            record.repetitions.append(metrics)


def require(name: str, measure: Measure, metrics: Metrics) -> None:
    try:
        measure.amount(metrics), measure.seconds(metrics)
    except KeyError as key:
        raise ImplementationFailed(f"{name} printed no {key} to read {measure.unit} from") from None


def check(implementation: Implementation, directory: Path) -> Record:
    """Runs one repetition without timing it."""
    record = Record(implementation.name)
    with failing(record):
        running = Running(implementation, directory)
        try:
            record.repetitions.append(running.repetition())
            record.peak_bytes = running.quit()
        finally:
            running.kill()
    return record


@contextlib.contextmanager
def failing(record: Record):
    try:
        yield
    except ImplementationFailed as failure:
        record.failure = str(failure)
