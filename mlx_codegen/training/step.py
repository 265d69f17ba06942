"""One training step: loss, gradients, clipping and update, compiled into one graph.

    tokens ──▶ model ──▶ logits ──▶ cross-entropy ──▶ gradients ──▶ clip to norm 1 ──▶ optimizer ──▶ new weights
                 ▲ compute type (float16, bfloat16, float32)              ▲ float32 master weights

Two things happen around it. A batch may be cut into parts whose gradients are averaged: one part after the other
(accumulation, to save memory) or side by side on several CPU streams (to use every core: MLX computes element-wise
work of a stream on one thread). And a step whose loss or gradients are not finite, or whose gradients are absurdly large,
changes nothing.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from mlx_codegen import cpu_loss
from mlx_codegen.config import PhaseConfig
from mlx_codegen.exponential import runs_on_float32_cpu
from mlx_codegen.model import Transformer
from mlx_codegen.training.distributed import Group
from mlx_codegen.training.optimizer import Tree, clip_factor, global_norm, init_state, update

FIRST_LOSS_SCALE = 2.0**15
# float16 (Micikevicius et al., 2017, arXiv 1710.03740): halve the scale when gradients overflow, double it after so
# many good steps.
STEPS_TO_RAISE_SCALE = 1000
# Gradients this many times longer than usual (and than what they are clipped to) come from a fault, not from a text.
SPIKE_FACTOR = 100
SPIKE_MEAN_STEPS = 50
"""What is usual is told from so many steps; before them nothing is called a spike."""


def total_loss(model: Transformer, tokens: mx.array) -> mx.array:
    """Cross-entropy of all next tokens of `tokens` `(B, T + 1)` together, in nats: a scalar to differentiate."""
    hidden, targets = model.hidden_states(tokens[:, :-1]), tokens[:, 1:]
    if runs_on_float32_cpu(hidden):
        return cpu_loss.total_cross_entropy(hidden.flatten(0, 1), model.output_table(), targets.flatten())
    return _cross_entropy(model.logits(hidden), targets).sum()


def token_losses(model: Transformer, tokens: mx.array) -> mx.array:
    """Cross-entropy in nats `(B, T)` of each next token, for `tokens` `(B, T + 1)`. Without a gradient on a CPU."""
    hidden, targets = model.hidden_states(tokens[:, :-1]), tokens[:, 1:]
    if runs_on_float32_cpu(hidden):
        losses = cpu_loss.token_cross_entropy(hidden.flatten(0, 1), model.output_table(), targets.flatten())
        return losses.reshape(targets.shape)
    return _cross_entropy(model.logits(hidden), targets)


def _cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """logsumexp(logits) - logit of the target, `(B, T)`, for logits `(B, T, V)`; in float32, whatever the model computes in."""
    logits = logits.astype(mx.float32)
    target_logits = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return mx.logsumexp(logits, axis=-1) - target_logits


class TrainStep:
    """The compiled step and everything that it changes: the model's weights, optimizer state, loss scale.

    `state()` and `restore()` give and take all of it as a flat tree, for checkpoints.
    """

    def __init__(
        self,
        model: Transformer,
        settings: PhaseConfig,
        precision: str,
        streams: list[mx.Stream],
        *,
        compiled: bool,
        group: Group | None = None,
    ) -> None:
        """With a `group`, every rank gives its own rows to a step and all make the same update."""
        self.model = model
        self._group = group
        self.optimizer_state: dict[str, Tree] = init_state(model.parameters(), settings)
        self.loss_scale = {
            "scale": mx.array(FIRST_LOSS_SCALE if precision == "float16" else 1.0),
            "good_steps": mx.array(0, mx.int32),
        }
        self.usual_norm = {"log_mean": mx.array(0.0), "steps": mx.array(0, mx.int32)}
        self._settings = settings
        self._dtype: mx.Dtype = getattr(mx, precision)
        self._streams = streams
        self._loss_and_gradients = mx.value_and_grad(self._scaled_loss)
        # Captured state is an input and an output of the compiled graph: it is read and written in place.
        captured = [model.state, self.optimizer_state, self.loss_scale, self.usual_norm, mx.random.state]
        compile_step = partial(mx.compile, inputs=captured, outputs=captured) if compiled else _as_it_is
        self._accumulate = compile_step(self._gradients_of_part)
        self._finish = compile_step(self._finish_uncompiled)
        self._update = compile_step(self._update_uncompiled)

    def __call__(self, parts: list[mx.array], learning_rate: float) -> tuple[mx.array, mx.array, mx.array]:
        """Run one update on parts of a batch, each `(B, T + 1)`, whose gradients are averaged.

        Returns loss in nats per token, gradient norm before clipping, and whether the update was made (both finite, the
        norm no spike): three scalars, not yet computed. Evaluate them together with `arrays()`.
        """
        self.model.train()
        rate = mx.array(learning_rate, mx.float32)
        total: dict[str, Tree] = {}
        for part in parts[:-1]:
            total = self._accumulate(part, total)
            mx.eval(total)  # or the activations of all parts would be alive together
        if self._group is None:
            return self._finish(parts[-1], total, mx.array(1.0 / len(parts)), rate)
        # What is not finite on one rank is so in the sum: all skip the step, or none.
        total = self._group.sum(self._accumulate(parts[-1], total))
        return self._update(total, mx.array(1.0 / (len(parts) * self._group.size)), rate)

    def arrays(self) -> list[Any]:
        """All arrays that a step changes, to be evaluated after it."""
        return [self.model.parameters(), self.optimizer_state, self.loss_scale, self.usual_norm, mx.random.state]

    def state(self) -> dict[str, Tree]:
        """What a checkpoint holds besides the weights."""
        return {"optimizer": self.optimizer_state, "loss_scale": self.loss_scale, "usual_norm": self.usual_norm}

    def restore(self, state: dict[str, Tree]) -> None:
        """Set what `state()` gave."""
        values = dict(tree_flatten(state))
        # Leaf by leaf: a file has no place for the empty branches of layers without weights (dropout).
        self.optimizer_state.update(tree_map_with_path(lambda name, _: values[f"optimizer.{name}"], self.optimizer_state))
        self.loss_scale.update(state["loss_scale"])
        self.usual_norm.update(state.get("usual_norm", {}))  # older checkpoints have none

    def _scaled_loss(self, parameters: Tree, tokens: mx.array, factor: mx.array) -> mx.array:
        self.model.update(tree_map(lambda p: p.astype(self._dtype), parameters))
        return total_loss(self.model, tokens) * factor

    def _gradients_of_part(self, tokens: mx.array, total: dict[str, Tree]) -> dict[str, Tree]:
        """Add loss and gradients of a part `(B, T + 1)` to a running total; an empty total starts one."""
        parameters = self.model.parameters()
        factor = self.loss_scale["scale"] / (tokens.shape[0] * (tokens.shape[1] - 1))
        for stream, rows in zip(self._streams, split_rows(tokens, len(self._streams)), strict=False):
            with mx.stream(stream):
                loss, gradients = self._loss_and_gradients(parameters, rows, factor)
            if total:
                loss, gradients = total["loss"] + loss, tree_map(mx.add, total["gradients"], gradients)
            total = {"loss": loss, "gradients": gradients}
        self.model.update(parameters)  # tracing left compute-type copies there
        return total

    def _finish_uncompiled(
        self, tokens: mx.array, total: dict[str, Tree], share: mx.array, learning_rate: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        return self._update_uncompiled(self._gradients_of_part(tokens, total), share, learning_rate)

    def _update_uncompiled(
        self, total: dict[str, Tree], share: mx.array, learning_rate: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """One update from the sums of loss and gradients over all parts; each part counts `share` of the whole."""
        factor = share / self.loss_scale["scale"]
        loss = total["loss"] * factor
        norm = global_norm(total["gradients"]) * factor
        finite = mx.isfinite(loss) & mx.isfinite(norm)
        usable = finite & ~self._is_spike(norm)
        # Dividing by the loss scale and clipping is one number, which the update takes along
        scale = factor * clip_factor(norm, self._settings.max_gradient_norm)
        parameters, state = update(
            self.model.parameters(),
            total["gradients"],
            self.optimizer_state,
            learning_rate,
            self._settings,
            self._streams,
            gradient_scale=scale,
            apply=usable,
        )
        self.model.update(parameters)
        self.optimizer_state.update(state)
        self._note_norm(norm, usable)
        if self._dtype == mx.float16:
            self._adjust_loss_scale(finite)
        return loss, norm, usable

    def _is_spike(self, norm: mx.array) -> mx.array:
        limit = SPIKE_FACTOR * mx.maximum(mx.exp(self.usual_norm["log_mean"]), self._settings.max_gradient_norm)
        return (self.usual_norm["steps"] >= SPIKE_MEAN_STEPS) & (norm > limit)

    def _note_norm(self, norm: mx.array, usable: mx.array) -> None:
        """A running mean over the logarithms of the norms of the steps that counted: one large norm hardly moves it."""
        mean, steps = self.usual_norm["log_mean"], self.usual_norm["steps"] + 1
        moved = mean + (mx.log(norm + 1e-12) - mean) / mx.minimum(steps, SPIKE_MEAN_STEPS)
        self.usual_norm.update(log_mean=mx.where(usable, moved, mean), steps=mx.where(usable, steps, steps - 1))

    def _adjust_loss_scale(self, finite: mx.array) -> None:
        scale, good_steps = self.loss_scale["scale"], self.loss_scale["good_steps"]
        good_steps = mx.where(finite, good_steps + 1, 0)
        raised = good_steps >= STEPS_TO_RAISE_SCALE
        scale = mx.where(finite, mx.where(raised, scale * 2, scale), scale / 2)
        self.loss_scale.update(scale=mx.clip(scale, 1.0, 2.0**24), good_steps=mx.where(raised, 0, good_steps))


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def split_rows(tokens: mx.array, parts: int) -> list[mx.array]:
    """A batch in at most `parts` pieces of almost equal size, none empty."""
    parts = min(parts, tokens.shape[0])
    bounds = [tokens.shape[0] * part // parts for part in range(parts + 1)]
    return [tokens[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def make_evaluation(
    model: Transformer, precision: str, streams: list[mx.Stream], byte_lengths: list[int], group: Group | None = None
) -> Callable[[Iterable[np.ndarray]], tuple[float, float, int]]:
    """A function from batches `(B, T + 1)` to mean loss in nats per token, bits per byte of text, and tokens seen.

    Bits per byte = total loss / (ln 2 · UTF-8 bytes of the target tokens); it compares across tokenizers.
    With a `group`, its ranks share the batches, and all get the figures of the whole.
    """
    lengths = mx.array(byte_lengths, mx.float32)
    dtype: mx.Dtype = getattr(mx, precision)

    def sums(tokens: mx.array) -> tuple[mx.array, mx.array]:
        losses, text_bytes = [], []
        for stream, rows in zip(streams, split_rows(tokens, len(streams)), strict=False):
            with mx.stream(stream):
                losses.append(token_losses(model, rows).sum())
                text_bytes.append(lengths[rows[:, 1:]].sum())
        return mx.stack(losses).sum(), mx.stack(text_bytes).sum()

    def evaluate(batches: Iterable[np.ndarray]) -> tuple[float, float, int]:
        master = model.parameters()
        model.update(tree_map(lambda p: p.astype(dtype), master))
        model.eval()
        total_loss, total_bytes, total_tokens = 0.0, 0.0, 0
        try:
            for batch in batches if group is None else list(batches)[group.rank :: group.size]:
                loss, text_bytes = sums(mx.array(batch, mx.int32))
                total_loss += loss.item()
                total_bytes += text_bytes.item()
                total_tokens += batch.shape[0] * (batch.shape[1] - 1)
        finally:
            model.update(master)
            model.train()
        if group is not None:
            total_loss, total_bytes, total_tokens = map(
                sum, zip(*group.gather([total_loss, total_bytes, total_tokens]), strict=True)
            )
        return total_loss / total_tokens, total_loss / (math.log(2) * max(total_bytes, 1.0)), total_tokens

    return evaluate
