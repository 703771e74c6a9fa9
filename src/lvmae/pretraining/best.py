"""Which validation was the best so far, by any figure of the curves, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvmae.errors import InputError

LOWER_IS_BETTER = frozenset({"val_loss", "alignment", "uniformity"})


class Best:
    """Follows one figure through the validations of a run.

    Args:
        figure: its name in the curves; None follows none.
        patience: validations that hold the figure, without a better one among them, after which to stop; None never stops.
    """

    def __init__(self, figure: str | None, patience: int | None) -> None:
        self.figure, self.patience = figure, patience
        self.step: int | None = None
        self.value = float("nan")
        self._since = 0

    def check(self, known: Sequence[str]) -> None:
        """Raises InputError if this run will not have the figure."""
        if self.figure is not None and self.figure not in known:
            raise InputError(
                f"best_by is {self.figure!r}, which this run does not measure: choose one of {', '.join(known)}."
            )

    def see(self, record: Mapping[str, Any]) -> bool:
        """Takes a validation's line of the curves; whether it is the best so far."""
        value = record.get(self.figure) if self.figure else None
        if value is None or "event" in record:
            return False
        sign = -1 if self.figure in LOWER_IS_BETTER else 1
        if self.step is not None and not sign * (value - self.value) > 0:
            self._since += 1
            return False
        self.step, self.value, self._since = int(record["step"]), float(value), 0
        return True

    @property
    def stopping(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.step is not None and self._since >= self.patience
