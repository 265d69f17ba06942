"""Tokens per second can be trusted: a clock with known durations gives known figures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import Recorder, phase_settings, tiny_config, tiny_tokenizer

from mlx_codegen.checkpoint import Progress
from mlx_codegen.data.batches import Tokens, TrainingBatches, open_token_files, validation_batches
from mlx_codegen.model import Transformer
from mlx_codegen.observer import EvaluationMetrics
from mlx_codegen.training.clock import WINDOW_STEPS, Throughput
from mlx_codegen.training.run_folder import RunFolder
from mlx_codegen.training.trainer import PhaseData, Trainer


class FakeClock:
    """Time passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def measure(clock: FakeClock, throughput: Throughput, durations: list[float], tokens: int = 100) -> None:
    for duration in durations:
        throughput.start()
        clock.passes(duration)
        throughput.stop(tokens)


def test_rate_is_tokens_over_time_of_the_steps() -> None:
    """The first step (compilation) is in the total time and not in the rate."""
    clock = FakeClock()
    throughput = Throughput(clock)
    measure(clock, throughput, [60.0])
    assert throughput.tokens_per_second() == 0.0
    measure(clock, throughput, [2.0, 3.0])
    assert throughput.tokens_per_second() == pytest.approx(200 / 5)
    assert throughput.seconds == pytest.approx(65.0)


def test_time_between_steps_is_not_counted() -> None:
    """Evaluation, saving and a laptop that slept between two steps do not lower the figure."""
    clock = FakeClock()
    throughput = Throughput(clock)
    for _ in range(4):
        measure(clock, throughput, [2.0])
        clock.passes(1000.0)
    assert throughput.tokens_per_second() == pytest.approx(50.0)
    assert throughput.seconds == pytest.approx(8.0)


def test_rate_follows_the_last_steps_only() -> None:
    """A slow start is forgotten after the window."""
    clock = FakeClock()
    throughput = Throughput(clock)
    measure(clock, throughput, [1.0] + [10.0] * 20 + [0.5] * WINDOW_STEPS)
    assert throughput.tokens_per_second() == pytest.approx(200.0)


class SlowBatches(TrainingBatches):
    """Each batch takes two seconds to come."""

    clock: FakeClock

    def next(self) -> Tokens:
        self.clock.passes(2.0)
        return super().next()


class SlowEvaluation(Recorder):
    """Each evaluation and each checkpoint takes a long time."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        super().__init__()
        self.passes = passes

    def on_evaluation(self, metrics: EvaluationMetrics) -> None:
        self.passes(500.0)
        super().on_evaluation(metrics)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.passes(70.0)
        super().on_checkpoint(path, step)


def test_training_counts_the_wait_for_data_and_not_evaluation(run: RunFolder) -> None:
    """Through the real trainer: 128 tokens a step, 2 seconds of data, and evaluations that would spoil everything."""
    clock = FakeClock()
    settings, config = phase_settings(steps=8, validate_every=2, checkpoint_every=3), tiny_config()
    tokenizer = tiny_tokenizer(run)
    files = open_token_files(run.data("code"), "train", {}, tokenizer.hash)
    batches = SlowBatches(files, 4, 32, seed=0)
    batches.clock = clock
    held_out = validation_batches(open_token_files(run.data("code"), "validation", {}, tokenizer.hash), 4, 32, 256)
    model = Transformer(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    recorder, progress = SlowEvaluation(clock.passes), Progress("code", total_steps=8)
    trainer = Trainer(
        run.path / "code", config, settings, model, tokenizer, PhaseData(batches, held_out, ""), progress, recorder, clock
    )
    assert trainer.run(lambda: False) == "finished"
    assert len(recorder.evaluations) == 5
    rates = [step.tokens_per_second for step in recorder.steps]
    assert rates == [0.0] + [pytest.approx(128 / 2.0)] * 7
    assert progress.train_seconds == pytest.approx(8 * 2.0)
