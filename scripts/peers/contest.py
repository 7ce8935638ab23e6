"""A contest: one piece of work, done by several contestants in alternating repetitions."""

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from peers.parity import Verdict
from peers.process import Contestant, ContestantFailed, Running

# Figures of one repetition, as a runner prints them.
Figures = dict


@dataclasses.dataclass(frozen=True)
class Measure:
    """A rate read off a repetition's figures: so much of `unit` per second."""

    unit: str
    amount: Callable[[Figures], float]
    seconds: Callable[[Figures], float] = lambda figures: figures["seconds"]


TOKENS = Measure("tokens/s", lambda figures: figures["tokens"])


@dataclasses.dataclass
class Record:
    """What one contestant did in one contest."""

    name: str
    repetitions: list[Figures] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None
    failure: str | None = None

    @property
    def first(self) -> Figures:
        return self.repetitions[0]


Records = dict[str, Record]


@dataclasses.dataclass(frozen=True)
class Contest:
    key: str  # row.what.precision
    title: str
    precision: str
    contestants: list[Contestant]
    # Done once and not timed, before the contest: what the results are held against.
    checks: list[Contestant]
    parity: Callable[[Records, Records], dict[str, Verdict]]
    measures: tuple[Measure, ...] = (TOKENS,)
    # The least arithmetic of a repetition, from its figures.
    flops: Callable[[Figures], float] | None = None
    note: str = ""
    # Long contests take fewer turns than asked for.
    most_warm_ups: int | None = None
    most_repetitions: int | None = None

    def turns(self, warm_ups: int, repetitions: int) -> tuple[int, int]:
        """How often it is held: (warm-ups, repetitions)."""
        return fewer(warm_ups, self.most_warm_ups), fewer(repetitions, self.most_repetitions)


def fewer(asked: int, most: int | None) -> int:
    return asked if most is None else min(asked, most)


@dataclasses.dataclass(frozen=True)
class Spread:
    median: float
    least: float
    most: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))


@dataclasses.dataclass
class Outcome:
    """A contest that was held."""

    contest: Contest
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
        return Spread.of([measure.amount(figures) / measure.seconds(figures) for figures in record.repetitions])

    def limit_fraction(self, name: str, limits: dict[str, float]) -> float | None:
        """How much of the machine's matrix-product speed the least arithmetic amounts to."""
        record, flops = self.records[name], self.contest.flops
        if record.failure or flops is None:
            return None
        speeds = [flops(figures) / figures["seconds"] for figures in record.repetitions]
        return statistics.median(speeds) / limits[self.contest.precision]


def hold(contest: Contest, warm_ups: int, repetitions: int, scratch: Path) -> Outcome:
    """Runs the checks, then the contest. A contestant that fails is left out; the others go on."""
    warm_ups, repetitions = contest.turns(warm_ups, repetitions)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{contest.key}-") as directory:
        checks = {c.name: check(c, Path(directory)) for c in contest.checks}
        records = {c.name: Record(c.name) for c in contest.contestants}
        with contextlib.ExitStack() as stack:
            started = {}
            for contestant in contest.contestants:
                with failing(records[contestant.name]):
                    started[contestant.name] = Running(contestant, Path(directory))
                    stack.callback(started[contestant.name].kill)
            for turn in range(warm_ups + repetitions):
                for name, running in started.items():
                    take_turn(records[name], running, contest.measures, counts=turn >= warm_ups)
            for name, running in started.items():
                if not records[name].failure:
                    with failing(records[name]):
                        records[name].peak_bytes = running.quit()
    sound = {name: record for name, record in records.items() if not record.failure}
    verdicts = contest.parity(sound, {name: record for name, record in checks.items() if not record.failure})
    return Outcome(contest, records, checks, verdicts, warm_ups, repetitions)


def take_turn(record: Record, running: Running, measures: tuple[Measure, ...], counts: bool) -> None:
    if record.failure:
        return
    with failing(record):
        figures = running.repetition()
        for measure in measures:
            require(record.name, measure, figures)
        if counts:
            record.repetitions.append(figures)


def require(name: str, measure: Measure, figures: Figures) -> None:
    try:
        measure.amount(figures), measure.seconds(figures)
    except KeyError as key:
        raise ContestantFailed(f"{name} printed no {key} to read {measure.unit} from") from None


def check(contestant: Contestant, directory: Path) -> Record:
    """One repetition whose time does not count."""
    record = Record(contestant.name)
    with failing(record):
        running = Running(contestant, directory)
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
    except ContestantFailed as failure:
        record.failure = str(failure)
