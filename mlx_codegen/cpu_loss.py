"""Cross-entropy for CPUs: the scores of all words for all tokens never exist at once.

A batch of 2,048 tokens with 8,000 words has 16 million scores, 65 MB, and each of twenty operations would read and write them
all. Here a few rows at a time go from hidden states to loss and gradient while their scores are in the cache. The gradient is
ready with the loss: it only has to be scaled in the backward pass.
"""

import math

import mlx.core as mx

from mlx_codegen.exponential import LOG2_E, exp2

SCORES_IN_CACHE = 2**20
"""4 MB of float32: about what a core's share of the cache holds."""


def row_blocks(rows: int, vocabulary: int) -> list[tuple[int, int]]:
    """Bounds of blocks of rows whose scores fit into the cache."""
    size = max(16, SCORES_IN_CACHE // vocabulary)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def token_cross_entropy(hidden: mx.array, table: mx.array, targets: mx.array) -> mx.array:
    """log Σ exp(logits) - logits[target] in nats `(N,)`, for hidden states `(N, C)`, output matrix `(V, C)`, targets `(N,)`.

    Without a gradient; see `total_cross_entropy`.
    """
    losses = []
    for start, end in row_blocks(hidden.shape[0], table.shape[0]):
        _, _, loss = _scores(hidden[start:end], table, targets[start:end])
        losses.append(loss)
    return mx.concatenate(losses)


def total_cross_entropy(hidden: mx.array, table: mx.array, targets: mx.array) -> mx.array:
    """The sum of `token_cross_entropy`, a scalar that can be differentiated by hidden states and output matrix."""
    return _total(hidden, table, targets)[0]


@mx.custom_function
def _total(hidden: mx.array, table: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Loss, and its gradients by hidden states `(N, C)` and table `(V, C)`.

    ∂L/∂logits = softmax - one at the target. The ones are taken off at the end, as rows of the table and of the hidden
    states: a whole pass over the scores less.
    """
    total = mx.array(0.0)
    of_table = mx.zeros_like(table)
    of_hidden = []
    for start, end in row_blocks(hidden.shape[0], table.shape[0]):
        # One block after the other, or their scores would be alive together.
        rows = mx.depends([hidden[start:end]], [of_table])[0]
        powers, one_over_sum, losses = _scores(rows, table, targets[start:end])
        total = total + losses.sum()
        of_hidden.append((powers @ table) * one_over_sum)
        of_table = of_table + powers.T @ (rows * one_over_sum)
    picked = table[targets]
    return total, mx.concatenate(of_hidden) - picked, of_table.at[targets].subtract(hidden)


@_total.vjp
def _total_vjp(
    primals: tuple[mx.array, mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array, mx.array],
    outputs: tuple[mx.array, mx.array, mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    return outputs[1] * cotangents[0], outputs[2] * cotangents[0], mx.zeros_like(primals[2])


def _scores(hidden: mx.array, table: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Powers 2^(score - largest) `(N, V)`, one over their sums `(N, 1)`, losses in nats `(N,)`."""
    scores = (hidden * LOG2_E) @ table.T
    largest = mx.max(scores, axis=-1, keepdims=True)
    powers = exp2(scores - largest)
    total = mx.sum(powers, axis=-1, keepdims=True)
    target_scores = mx.take_along_axis(scores, targets[:, None], axis=-1)
    losses = mx.log(total) + (largest - target_scores) * math.log(2)
    return powers, 1 / total, losses.squeeze(-1)
