"""How long work reports: the library calls an observer, and knows nothing of terminals and files.

The terminal display, the JSONL log and the tests are observers. Each method does nothing here; override what matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PhaseStart:
    """What a phase is about to do. `train_tokens` is one pass over its text; None where a source is streamed."""

    phase: str
    first_step: int
    total_steps: int
    tokens_per_step: int
    train_tokens: int | None
    parameters: int
    precision: str


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer update. `loss` is in nats per token; `tokens_per_second` is over the last few steps."""

    phase: str
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    tokens_seen: int
    peak_memory_bytes: int
    skipped: bool


@dataclass(frozen=True)
class EvaluationMetrics:
    """One evaluation on validation text. `loss` in nats per token, `bits_per_byte` independent of the tokenizer."""

    phase: str
    step: int
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    best: bool


class Observer:
    """Base of all observers."""

    def on_message(self, text: str) -> None:
        """One line that a person may want to know."""

    def on_prepare(self, source: str, documents: int, text_bytes: int) -> None:
        """So much of a source is tokenised."""

    def on_phase_start(self, start: PhaseStart) -> None:
        """A phase begins or goes on."""

    def on_step(self, metrics: StepMetrics) -> None:
        """An update is done."""

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        """The validation loss was measured."""

    def on_checkpoint(self, path: Path, step: int) -> None:
        """A checkpoint is safely on disk."""

    def on_phase_end(self, phase: str, reason: str) -> None:
        """A phase is over; the reason is one of `finished`, `early stopping`, `interrupted`."""

    def close(self) -> None:
        """Nothing more comes."""


class Observers(Observer):
    """Passes everything on to several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_message(self, text: str) -> None:
        for observer in self._observers:
            observer.on_message(text)

    def on_prepare(self, source: str, documents: int, text_bytes: int) -> None:
        for observer in self._observers:
            observer.on_prepare(source, documents, text_bytes)

    def on_phase_start(self, start: PhaseStart) -> None:
        for observer in self._observers:
            observer.on_phase_start(start)

    def on_step(self, metrics: StepMetrics) -> None:
        for observer in self._observers:
            observer.on_step(metrics)

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        for observer in self._observers:
            observer.on_evaluation(metrics)

    def on_checkpoint(self, path: Path, step: int) -> None:
        for observer in self._observers:
            observer.on_checkpoint(path, step)

    def on_phase_end(self, phase: str, reason: str) -> None:
        for observer in self._observers:
            observer.on_phase_end(phase, reason)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()
