"""Losses and gradients that are not finite or absurdly large: skipped, counted, reported, and after a few the run is stopped."""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from fault_processes import Note
from mlx.utils import tree_flatten
from test_training import make_trainer
from tiny_run import Recorder, tiny_config, tiny_tokenizer

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.data.batches import TokenFile, TrainingBatches
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer
from mlx_codegen.observer import StepMetrics
from mlx_codegen.training import step as step_module
from mlx_codegen.training.metrics_log import MetricsLog
from mlx_codegen.training.run_folder import RunFolder
from mlx_codegen.training.step import FIRST_LOSS_SCALE, SPIKE_FACTOR, SPIKE_MEAN_STEPS
from mlx_codegen.training.trainer import MAX_SKIPPED_IN_A_ROW, Trainer


class Disturber(Recorder):
    """Multiplies the output table before chosen steps, as a faulty memory might, and puts it right after each."""

    def __init__(self, steps: set[int], factor: float) -> None:
        super().__init__()
        self.bad_steps, self.factor = steps, factor
        self.good: mx.array | None = None
        self.model: Transformer | None = None

    def on_step(self, metrics: StepMetrics) -> None:
        super().on_step(metrics)
        assert self.model is not None
        table = self.model.token_embedding
        if self.good is not None:
            table.weight, self.good = self.good, None
        if metrics.step + 1 in self.bad_steps:
            self.good = table.weight
            table.weight = table.weight * self.factor


def disturbed(run: RunFolder, steps: set[int], factor: float, total: int = 40) -> tuple[Trainer, Disturber]:
    recorder = Disturber(steps, factor)
    trainer = make_trainer(run, tiny_config("phases.code.checkpoint_every=5", "phases.code.validate_every=50"), recorder)
    trainer.progress.total_steps = total
    recorder.model = trainer.model
    return trainer, recorder


def all_finite(trainer: Trainer) -> bool:
    arrays = [value for _, value in tree_flatten([trainer.model.parameters(), trainer.step.state()])]
    return all(mx.all(mx.isfinite(value)).item() for value in arrays)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_steps_that_are_not_finite_are_skipped_counted_and_logged(run: RunFolder, note: Note, factor: float) -> None:
    """At chosen steps, two of them in a row: no weight and no moment moves, the run goes on and learns."""
    chosen = {3, 9, 10, 25}
    trainer, recorder = disturbed(run, chosen, factor)
    log = MetricsLog(run.metrics_file)
    on_step = recorder.on_step
    recorder.on_step = lambda metrics: (log.on_step(metrics), on_step(metrics))[1]  # type: ignore[method-assign]
    assert trainer.run(lambda: False) == "finished"
    assert {step.step for step in recorder.steps if step.skipped} == chosen
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert {line["step"] for line in lines if line["skipped"]} == chosen
    assert all(line["loss"] is None for line in lines if line["skipped"])
    assert all_finite(trainer)
    assert recorder.evaluations[-1].loss < recorder.evaluations[0].loss - 0.3
    note(f"weights {factor} before chosen steps", len(chosen), "nothing; those steps skipped, counted, logged")


def test_a_spike_is_skipped_and_a_large_gradient_is_clipped(run: RunFolder, note: Note) -> None:
    """Over a hundred times what is usual is a fault; ten times is what clipping is for."""
    late = SPIKE_MEAN_STEPS + 5
    trainer, recorder = disturbed(run, {5, late}, 400.0, total=late + 15)
    assert trainer.run(lambda: False) == "finished"
    norms = {step.step: step.gradient_norm for step in recorder.steps}
    usual = float(np.median([norms[step] for step in range(20, SPIKE_MEAN_STEPS)]))
    assert norms[late] > SPIKE_FACTOR * max(usual, 1.0)
    assert [step.step for step in recorder.steps if step.skipped] == [late], "before it is known what is usual, none is"
    assert all_finite(trainer)
    note("finite gradients over 100 times the usual", 1, "nothing; the step skipped, counted, logged")


def test_spikes_that_do_not_end_stop_the_run_and_keep_the_checkpoints(run: RunFolder, note: Note) -> None:
    """Five in a row; the newest checkpoint is of before the first."""
    first = SPIKE_MEAN_STEPS + 4
    trainer, recorder = disturbed(run, set(range(first, first + 20)), 400.0, total=100)
    with pytest.raises(UserError, match=rf"gradients were over {SPIKE_FACTOR} times larger than usual for 5 steps in a row"):
        trainer.run(lambda: False)
    assert recorder.steps[-1].step == first + MAX_SKIPPED_IN_A_ROW - 1
    assert load_checkpoint(run.checkpoint("code", "last")).progress.step == first // 5 * 5
    note("gradient spikes without end", 1, "nothing; stopped after 5, checkpoint of before untouched")


def test_ctrl_c_while_it_diverges_saves_no_bad_weights(run: RunFolder) -> None:
    """The checkpoint of before is worth more than the newest weights."""
    trainer, recorder = disturbed(run, set(), 1.0)
    on_step = recorder.on_step

    def ruin(metrics: StepMetrics) -> None:
        on_step(metrics)
        if metrics.step == 7:
            trainer.model.token_embedding.weight[:] = mx.inf

    recorder.on_step = ruin  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"not finite for 2 steps in a row .* are untouched"):
        trainer.run(recorder.stop_at("code", 9))
    assert load_checkpoint(run.checkpoint("code", "last")).progress.step == 5


def test_ctrl_c_after_one_skipped_step_saves(run: RunFolder) -> None:
    """The weights are good: only the step was not."""
    trainer, recorder = disturbed(run, {9}, math.nan)
    on_step = recorder.on_step

    def repair(metrics: StepMetrics) -> None:  # before the run asks whether to stop
        on_step(metrics)

    recorder.on_step = repair  # type: ignore[method-assign]
    assert trainer.run(recorder.stop_at("code", 9)) == "interrupted"
    checkpoint = load_checkpoint(run.checkpoint("code", "last"))
    assert checkpoint.progress.step == 9
    assert all(mx.all(mx.isfinite(value)).item() for value in checkpoint.weights.values())


def test_a_batch_of_one_token_repeated_is_survived(run: RunFolder, note: Note) -> None:
    """A degenerate text for ten steps among good ones: all stays finite, and the loss on text comes back."""
    trainer, recorder = disturbed(run, set(), 1.0, total=60)
    vocabulary = tiny_tokenizer(run).vocab_size
    tokens = np.full(2000, vocabulary // 2, np.uint16)
    monotonous = TrainingBatches([TokenFile("same", 1.0, tokens, np.array([2000], np.uint64))], 4, 32, 0)
    good = trainer.data.batches.next
    drawn = 0

    def next_batch() -> np.ndarray:
        nonlocal drawn
        drawn += 1
        return monotonous.next() if 20 < drawn <= 30 else good()

    trainer.data.batches.next = next_batch  # type: ignore[method-assign]
    assert trainer.run(lambda: False) == "finished"
    assert not any(step.skipped for step in recorder.steps)
    assert all_finite(trainer)
    assert recorder.evaluations[-1].loss < recorder.evaluations[0].loss - 0.3
    note("batches of one token repeated", 10, "nothing; learnt and unlearnt again")


# --- the loss scale of float16 ---


def half_precision(run: RunFolder, recorder: Recorder) -> Trainer:
    return make_trainer(run, tiny_config("precision=float16"), recorder)


def test_overflow_halves_the_loss_scale_and_skips(run: RunFolder, note: Note) -> None:
    """A scale that is far too large is halved until gradients fit into 16 bits; at the border it depends on the batch."""
    recorder = Recorder()
    trainer = half_precision(run, recorder)
    trainer.step.loss_scale["scale"] = mx.array(2.0**24)
    assert trainer.run(recorder.stop_at("code", 15)) == "interrupted"
    skips = [step.skipped for step in recorder.steps]
    skipped = sum(skips)
    assert len(skips) == 15 and skips[:3] == [True] * 3 and skips[-5:] == [False] * 5
    assert trainer.step.loss_scale["scale"].item() == 2.0 ** (24 - skipped)
    assert all_finite(trainer)
    note("float16 overflow from a loss scale of 2^24", skipped, f"nothing; {skipped} steps skipped until it fits")


def test_the_loss_scale_has_a_floor_and_rises_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never below 1; doubled after so many good steps in a row, which a bad one starts anew."""
    monkeypatch.setattr(step_module, "STEPS_TO_RAISE_SCALE", 3)
    step = half_precision(run, Recorder()).step
    scales = []
    for finite in [True, True, False, True, True, True, True, True, True]:
        step._adjust_loss_scale(mx.array(finite))
        scales.append(step.loss_scale["scale"].item() / FIRST_LOSS_SCALE)
    assert scales == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2]
    for _ in range(40):
        step._adjust_loss_scale(mx.array(False))
    assert step.loss_scale["scale"].item() == 1.0


def test_a_float16_run_that_diverges_is_stopped_later(run: RunFolder) -> None:
    """Twenty-five in a row: finding the scale may take that many."""
    recorder = Recorder()
    trainer = half_precision(run, recorder)
    trainer.model.token_embedding.weight[:] = mx.nan
    with pytest.raises(UserError, match=r"not finite for 25 steps in a row"):
        trainer.run(lambda: False)


def test_the_usual_norm_is_resumed(run: RunFolder, tmp_path: Path) -> None:
    """Part of the checkpoint: otherwise a resumed run would not skip the spike that the unbroken run skips."""
    trainer, recorder = disturbed(run, set(), 1.0)
    trainer.run(recorder.stop_at("code", 12))
    saved = load_checkpoint(run.checkpoint("code", "last"))
    assert saved.trainer["usual_norm"]["steps"].item() == 12
    again, _ = disturbed(run, set(), 1.0)
    again.progress = saved.progress
    again.restore(saved.trainer)
    norms = [step.gradient_norm for step in recorder.steps]
    assert again.step.usual_norm["log_mean"].item() == pytest.approx(np.mean(np.log(norms)), abs=1e-5)
    del saved.trainer["usual_norm"]  # a checkpoint of an older version
    older, _ = disturbed(run, set(), 1.0)
    older.progress = saved.progress
    older.restore(saved.trainer)
    assert older.step.usual_norm["steps"].item() == 0
