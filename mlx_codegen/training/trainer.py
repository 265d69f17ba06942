"""Train one phase: next batch, step, tell the observers; now and then evaluate and save."""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np

from mlx_codegen import backend
from mlx_codegen.checkpoint import Progress, save_checkpoint
from mlx_codegen.config import PhaseConfig, RunConfig
from mlx_codegen.data.batches import Batches
from mlx_codegen.data.shards import ShardError
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer, count_parameters
from mlx_codegen.observer import EvaluationMetrics, Observer, PhaseStart, StepMetrics
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.clock import Throughput
from mlx_codegen.training.distributed import Group
from mlx_codegen.training.optimizer import learning_rate_at
from mlx_codegen.training.step import SPIKE_FACTOR, TrainStep, make_evaluation

# One bad batch is skipped; this many in a row mean that the run itself has gone wrong.
MAX_SKIPPED_IN_A_ROW = 5


@dataclass
class PhaseData:
    """What a phase reads. `fingerprint` names the token files; a resumed run must find the same."""

    batches: Batches
    validation: list[np.ndarray]
    fingerprint: str
    check_unchanged: Callable[[], None] = lambda: None
    """Raises UserError when the token files are others than at the start."""


class Trainer:
    """One phase of one run. Everything that changes while it runs is in `model`, `step`, `data.batches` and `progress`."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        settings: PhaseConfig,
        model: Transformer,
        tokenizer: Tokenizer,
        data: PhaseData,
        progress: Progress,
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
        group: Group | None = None,
    ) -> None:
        """In a `group`, rank 0 writes the checkpoints; the others are to be given an observer that shows nothing."""
        self.folder = folder
        self.config = config
        self.settings = settings
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.progress = progress
        self.observer = observer
        self.group = group
        self.precision = backend.resolve_precision(config.precision)
        streams = backend.compute_streams()
        self.step = TrainStep(model, settings, self.precision, streams, compiled=backend.compiling_pays(), group=group)
        self._evaluate = make_evaluation(model, self.precision, streams, tokenizer.byte_lengths(), group)
        self._throughput = Throughput(clock)
        self._skipped_in_a_row = 0
        self._spiked = False

    def restore(self, trainer_state: dict[str, Any]) -> None:
        """Set what a checkpoint's `trainer` part holds, and the data position from `progress`."""
        self.step.restore(trainer_state)
        high, low = trainer_state["random"][0].tolist()
        mx.random.seed((high << 32) | low)  # the state is one key of two words, which newer MLX lets nobody assign
        self.data.batches.restore(self.progress.data_position)
        self._throughput.seconds = self.progress.train_seconds

    def share_state(self, group: Group) -> None:
        """Rank 0's weights and optimizer state on all ranks: the others read no checkpoint."""
        parameters, state = group.share([self.model.parameters(), self.step.state()])
        self.model.update(parameters)
        self.step.restore(state)

    def run(self, should_stop: Callable[[], bool]) -> str:
        """Train until the phase is done or `should_stop()` is true after a step.

        Returns `finished`, `early stopping` or `interrupted`. Raises UserError when steps had to be skipped several
        times in a row; the checkpoints then are those from before.
        """
        with self._throughput.noticing_pauses(), closing(self.data.batches):
            return self._run(should_stop)

    def _run(self, should_stop: Callable[[], bool]) -> str:
        progress = self.progress
        self._announce()
        parts = self._next_parts()
        if progress.step == 0:
            self.save_last()  # so that --resume knows these first weights, and a full disk is found out now
            self.evaluate()
        reason = "finished"
        while progress.step < progress.total_steps:
            parts = self._train_one(parts)
            if progress.step % self.settings.validate_every == 0 or progress.step == progress.total_steps:
                self.evaluate()
                if self._no_longer_improving():
                    reason = "early stopping"
                    break
            if self._all_stop(should_stop()) and progress.step < progress.total_steps:
                reason = "interrupted"
                break
            due = progress.step % self.settings.checkpoint_every == 0 and progress.step < progress.total_steps
            if due and not self._skipped_in_a_row:  # weights whose loss is not finite must not replace good ones
                self.save_last()
        progress.finished = reason != "interrupted"
        if self._skipped_in_a_row and not math.isfinite(self._evaluate(self.data.validation)[0]):
            raise self._diverged()
        self.save_last()
        self.observer.on_phase_end(progress.phase, reason)
        return reason

    def evaluate(self) -> None:
        """Measure the validation loss; keep the weights if it is the best so far."""
        loss, bits_per_byte, tokens = self._evaluate(self.data.validation)
        progress = self.progress
        best = math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
        progress.evaluations_without_gain = 0 if best else progress.evaluations_without_gain + 1
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            progress.validation = {"loss": loss, "bits_per_byte": bits_per_byte}
            self._save("best", with_trainer=False)
        perplexity = math.exp(min(loss, 700.0))
        self.observer.on_evaluation(
            EvaluationMetrics(progress.phase, progress.step, loss, perplexity, bits_per_byte, tokens, best)
        )

    def save_last(self) -> None:
        """Write everything that resuming needs; the one before is kept as `previous`."""
        self.data.check_unchanged()
        self._save("last", with_trainer=True)

    def _announce(self) -> None:
        tokens_per_step = self.data.batches.tokens_per_batch * self.settings.gradient_accumulation
        self.observer.on_phase_start(
            PhaseStart(
                phase=self.progress.phase,
                first_step=self.progress.step,
                total_steps=self.progress.total_steps,
                tokens_per_step=tokens_per_step,
                train_tokens=self.data.batches.tokens_per_epoch,
                parameters=count_parameters(self.model),
                precision=self.precision,
            )
        )

    def _next_parts(self) -> list[mx.array]:
        """One step's batches. The position is noted first: a checkpoint must not skip what is drawn but not trained on."""
        self.progress.data_position = self.data.batches.state()
        count = self.settings.gradient_accumulation
        return [mx.array(self.data.batches.next().astype(np.int32)) for _ in range(count)]

    def _train_one(self, parts: list[mx.array]) -> list[mx.array]:
        """One update. Returns the next step's batches, made while the device worked."""
        progress = self.progress
        learning_rate = learning_rate_at(progress.step, progress.total_steps, self.settings)
        self._throughput.start()
        if self.group is not None and self.group.rank > 0:
            mx.random.seed(self._own_seed())
        loss, norm, usable = self.step(parts, learning_rate)
        mx.async_eval(loss, norm, usable, *self.step.arrays())
        tokens = len(parts) * self.data.batches.tokens_per_batch
        next_parts, failure = self._try_next_parts()
        mx.eval(loss, norm, usable, *self.step.arrays())
        self._throughput.stop(tokens)
        progress.step += 1
        progress.tokens_seen += tokens
        progress.train_seconds = self._throughput.seconds
        self._report(loss.item(), norm.item(), bool(usable.item()), learning_rate)
        if failure is not None and progress.step < progress.total_steps:
            self._end_without_data(failure)
        return next_parts

    def _try_next_parts(self) -> tuple[list[mx.array], ShardError | None]:
        """The next step's batches, or why there are none: the step under way is to be finished first."""
        try:
            return self._next_parts(), None
        except ShardError as error:
            return [], error

    def _end_without_data(self, failure: ShardError) -> NoReturn:
        if self._skipped_in_a_row:
            raise failure
        self.save_last()
        raise ShardError(f"{failure}; saved at step {self.progress.step:,}: --resume goes on from there")

    def _report(self, loss: float, norm: float, usable: bool, learning_rate: float) -> None:
        progress = self.progress
        self.observer.on_step(
            StepMetrics(
                phase=progress.phase,
                step=progress.step,
                total_steps=progress.total_steps,
                loss=loss,
                learning_rate=learning_rate,
                gradient_norm=norm,
                tokens_per_second=self._throughput.tokens_per_second(),
                tokens_seen=progress.tokens_seen,
                peak_memory_bytes=backend.peak_memory_bytes(),
                skipped=not usable,
            )
        )
        self._skipped_in_a_row = 0 if usable else self._skipped_in_a_row + 1
        self._spiked = not usable and math.isfinite(loss) and math.isfinite(norm)
        # float16 finds its loss scale by overflowing a few times, which is no fault of the run.
        allowed = MAX_SKIPPED_IN_A_ROW + (20 if self.precision == "float16" else 0)
        if self._skipped_in_a_row >= allowed:
            raise self._diverged()

    def _diverged(self) -> UserError:
        phase, step = self.progress.phase, self.progress.step
        what = f"gradients were over {SPIKE_FACTOR} times larger than usual" if self._spiked else "loss was not finite"
        return UserError(
            f"the {what} for {self._skipped_in_a_row} steps in a row (step {step}); the checkpoints in {self.folder} are "
            f"untouched; lower phases.{phase}.learning_rate and use --resume"
        )

    def _all_stop(self, flag: bool) -> bool:
        """The flag, or in a group whether any rank's is true: all must stop after the same step."""
        return flag if self.group is None else self.group.stops(flag)

    def _own_seed(self) -> int:
        """Of this step and rank: other dropout than rank 0's, whose random state is the one that a checkpoint holds."""
        assert self.group is not None
        name = f"{self.config.seed} {self.progress.phase} {self.progress.step} {self.group.rank}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")

    def _no_longer_improving(self) -> bool:
        patience = self.settings.early_stopping
        return patience is not None and self.progress.evaluations_without_gain >= patience

    def _save(self, name: str, *, with_trainer: bool) -> None:
        if self.group is not None and self.group.rank > 0:
            return
        path = self.folder / f"{name}.safetensors"
        trainer = self.step.state() if with_trainer else None
        previous = path.with_stem("previous") if with_trainer else None
        save_checkpoint(path, self.model, self.tokenizer, self.config, self.progress, trainer, previous)
        self.observer.on_checkpoint(path, self.progress.step)
