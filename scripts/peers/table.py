"""The whole table: the rows held so far, on which machine, and those that could not be held."""

import dataclasses
from collections.abc import Callable

from peers import contest
from peers.contest import Outcome
from peers.data import MissingData
from peers.machine import Limits, Machine, matrix_product_limits
from peers.setting import Setting


class NotHere(Exception):
    """The machine cannot hold this contest; says why."""


# Makes, from a setting, functions that each prepare one contest: preparing may fetch models and tokenize data.
Row = Callable[[Setting], list[Callable[[], contest.Contest]]]


@dataclasses.dataclass
class Table:
    machine: Machine
    limits: Limits = dataclasses.field(default_factory=dict)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def hold(self, name: str, row: Row, setting: Setting, turns: tuple[int, int], show: Callable[["Table"], None]) -> None:
        """Holds every contest of a row and shows each at once. A row that cannot be held here is skipped."""
        # Measured again for each row: a limit is the best that the machine has shown.
        self.limits = matrix_product_limits(setting, self.limits)
        try:
            for prepare in row(setting):
                self.outcomes.append(contest.hold(prepare(), *turns, setting.scratch))
                show(self)
        except (MissingData, NotHere) as reason:
            self.skipped[name] = str(reason)

    @property
    def unsound(self) -> list[str]:
        """What makes the exit status 1."""
        return [o.contest.key for o in self.outcomes if o.void or o.failures] + list(self.skipped)
