"""Causal attention for CPUs in training, forwards and backwards written out.

Queries come in blocks: a block's scores stay in the processor's cache, and the keys after its end are never looked at.
The backward pass uses the softmax's weights of the forward pass, and that Σ w ∂L/∂w is the inner product of output and
its gradient (Dao et al., 2022, arXiv 2205.14135, appendix B.2), so that only two operations touch all weights.
"""

import math

import mlx.core as mx

from mlx_codegen.exponential import LOG2_E, exp2

QUERY_BLOCK = 128


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """softmax(scale · Q Kᵀ, earlier keys only) V for `(B, H, T, D)` each, block of queries by block of queries.

    Equal to `mx.fast.scaled_dot_product_attention(..., mask="causal")` within rounding.
    """
    queries = queries * (scale * LOG2_E)  # the scores are then powers of 2
    blocks = []
    for start in range(0, queries.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, queries.shape[2])
        blocks.append(_attend_block(queries[:, :, start:end], keys[:, :, :end], values[:, :, :end])[0])
    return mx.concatenate(blocks, axis=2) if len(blocks) > 1 else blocks[0]


@mx.custom_function
def _attend_block(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The last queries `(B, H, Q, D)` look at all keys `(B, H, S, D)` up to their own place.

    Returns the output `(B, H, Q, D)`, and for the backward pass the weights before they are divided by their sum
    `(B, H, Q, S)`, and one over that sum `(B, H, Q, 1)`.
    """
    scores = queries @ keys.swapaxes(-1, -2) + _later_keys(queries.shape[2], keys.shape[2])
    weights = exp2(scores - mx.max(scores, axis=-1, keepdims=True))
    one_over_sum = 1 / mx.sum(weights, axis=-1, keepdims=True)
    return (weights @ values) * one_over_sum, weights, one_over_sum


@_attend_block.vjp
def _attend_block_vjp(
    primals: tuple[mx.array, mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array, mx.array],
    outputs: tuple[mx.array, mx.array, mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    queries, keys, values = primals
    output, weights, one_over_sum = outputs
    cotangent = cotangents[0] * one_over_sum
    of_values = weights.swapaxes(-1, -2) @ cotangent
    mean = mx.sum(cotangent * output, axis=-1, keepdims=True)
    of_scores = weights * (cotangent @ values.swapaxes(-1, -2) - mean)
    ln2 = math.log(2)  # d(2ˢ) = ln 2 · 2ˢ ds; applied where the arrays are small
    return (of_scores @ keys) * ln2, (of_scores.swapaxes(-1, -2) @ queries) * ln2, of_values


def _later_keys(queries: int, keys: int) -> mx.array:
    """-∞ where a key is later than the query, 0 elsewhere: `(Q, S)`; the queries are the last of the keys' places."""
    places = mx.arange(keys)
    return mx.where(places <= places[keys - queries :, None], 0.0, -mx.inf)
