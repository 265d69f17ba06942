"""metrics.jsonl read back: what a run has done so far, also while it is still going on."""

import json
import math
import os
from bisect import bisect_right
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mlx_codegen.config import PHASES, PhaseName
from mlx_codegen.errors import UserError
from mlx_codegen.observer import EvaluationMetrics, StepMetrics

Metrics = TypeVar("Metrics", StepMetrics, EvaluationMetrics)


@dataclass
class PhaseHistory:
    """Steps and evaluations of one phase, each in order, each step once."""

    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: list[EvaluationMetrics] = field(default_factory=list)

    def add_step(self, metrics: StepMetrics) -> None:
        """A resumed run goes back to its checkpoint and takes some steps again: the later ones count."""
        _forget_from(self.steps, metrics.step)
        _forget_from(self.evaluations, metrics.step)
        self.steps.append(metrics)

    def add_evaluation(self, metrics: EvaluationMetrics) -> None:
        """An evaluation at step n comes after step n."""
        _forget_from(self.steps, metrics.step + 1)
        _forget_from(self.evaluations, metrics.step)
        self.evaluations.append(metrics)

    def step(self) -> int:
        """The last update that was done."""
        return self.steps[-1].step if self.steps else 0

    def best(self) -> EvaluationMetrics | None:
        """The evaluation with the lowest loss."""
        finite = [metrics for metrics in self.evaluations if math.isfinite(metrics.loss)]
        return min(finite, key=lambda metrics: metrics.loss, default=None)

    def skipped(self) -> list[int]:
        """Steps whose loss was not finite: their updates were left out."""
        return [metrics.step for metrics in self.steps if metrics.skipped]

    def resumed_at(self) -> list[int]:
        """Steps after which the training program was started again: it knows no speed before its second step."""
        return [metrics.step - 1 for metrics in self.steps if metrics.tokens_per_second == 0 and metrics.step > 1]

    def tokens_at(self, step: int) -> int:
        """Tokens trained on when `step` was done."""
        index = bisect_right(self.steps, step, key=lambda metrics: metrics.step)
        return self.steps[index - 1].tokens_seen if index else 0

    def seconds_left(self) -> float | None:
        """Time that the remaining steps need at the present speed, evaluations not counted; None where it is not known."""
        last = self.steps[-1] if self.steps else None
        if last is None or not last.tokens_per_second > 0:
            return None
        return (last.total_steps - last.step) * (last.tokens_seen / max(1, last.step)) / last.tokens_per_second


class History:
    """Follows a metrics file that may grow, end in half a line, or be replaced by the training program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self.phases: dict[PhaseName, PhaseHistory] = {}
        self.current: PhaseName | None = None
        """The phase of the last line."""
        self.broken_lines = 0
        """Lines that could not be understood and were passed over."""

    def read(self) -> None:
        """Take in what was written since the last call. Raises OSError for a file that may not be read."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            status = os.fstat(stream.fileno())
            # Every start of the training program writes the file anew, without the steps that it will take again.
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._forget()
                self._inode = status.st_ino
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")  # the half line after it is read next time
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            kind = values["kind"]
            if kind == "step":
                step = _metrics(values, StepMetrics)
                self._phase(step.phase).add_step(step)
            elif kind == "evaluation":
                evaluation = _metrics(values, EvaluationMetrics)
                self._phase(evaluation.phase).add_evaluation(evaluation)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.broken_lines += 1

    def _phase(self, name: str) -> PhaseHistory:
        (self.current,) = [phase for phase in PHASES if phase == name]  # ValueError for a phase that is none of ours
        return self.phases.setdefault(self.current, PhaseHistory())


def read_history(path: Path) -> History:
    """A metrics file as it stands now. Raises UserError where no line of it is ours."""
    history = History(path)
    history.read()
    if history.broken_lines and not history.phases:
        raise UserError(f"{path}: none of its {history.broken_lines:,} lines is one of mlx_codegen's; give another run")
    return history


def _forget_from(metrics: list[Metrics], step: int) -> None:
    while metrics and metrics[-1].step >= step:
        metrics.pop()


FIELDS = {kind: {each.name: each.type for each in fields(kind)} for kind in (StepMetrics, EvaluationMetrics)}


def _metrics(values: dict[str, Any], kind: type[Metrics]) -> Metrics:
    """One line's values as the dataclass that they were written from. Raises KeyError, ValueError or TypeError."""
    return kind(**{name: _checked(values[name], expected) for name, expected in FIELDS[kind].items()})


def _checked(value: Any, expected: Any) -> Any:
    if expected is float:
        return math.nan if value is None else float(value)  # JSON has no NaN
    if not isinstance(value, expected):
        raise ValueError(f"{value!r} is no {expected}")
    return value
