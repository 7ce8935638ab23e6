"""The table: the machine, the rows run so far, and those that were skipped."""

import dataclasses
from collections.abc import Callable

from peers import case
from peers.case import Outcome
from peers.data import MissingData
from peers.machine import Limits, Machine, matrix_product_limits
from peers.setting import Setting


class NotHere(Exception):
    """The machine cannot run this case. The message has the reason."""


# Returns functions for a setting, each of which prepares one case. Preparation may fetch models and tokenize data.
Row = Callable[[Setting], list[Callable[[], case.Case]]]


@dataclasses.dataclass
class Table:
    machine: Machine
    limits: Limits = dataclasses.field(default_factory=dict)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def run(self, name: str, row: Row, setting: Setting, turns: tuple[int, int], show: Callable[["Table"], None]) -> None:
        """Runs all cases of a row and prints each immediately. A row that cannot run here is skipped."""
        # Measured again for each row; the limit is the best measurement.
        self.limits = matrix_product_limits(setting, self.limits)
        try:
            for prepare in row(setting):
                self.outcomes.append(case.run(prepare(), *turns, setting.scratch))
                show(self)
        except (MissingData, NotHere) as reason:
            self.skipped[name] = str(reason)

    @property
    def unsound(self) -> list[str]:
        """The cases and rows because of which the exit status is 1."""
        return [o.case.key for o in self.outcomes if o.void or o.failures] + list(self.skipped)
