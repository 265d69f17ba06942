"""Exponentials that are fast on CPUs, and the two places where a transformer needs many: attention and the loss.

On a CPU, MLX computes exp one number at a time, 13 ns each, and attention and loss need millions a step. Here
2ˣ is split into a whole part, which goes straight into the exponent bits of a float32, and a fraction, which a
polynomial covers: vector instructions, 3 ns, the same accuracy (1e-6 relative). GPUs never come here.
"""

import mlx.core as mx

LOG2_E = 1.4426950408889634
# 2ᶠ for -1/2 <= f <= 1/2, a least-squares fit at Chebyshev points with relative error 2e-9; highest power first.
EXP2_COEFFICIENTS = (
    1.53375768434e-4, 1.33998603635e-3, 9.61851953432e-3, 5.55032899752e-2, 2.40226466087e-1, 6.93147205601e-1, 1.00000000059
)  # fmt: skip
MANTISSA_BITS = 23
EXPONENT_BIAS = 127
# Queries of a block attend to the keys up to its end: the rest of the causal triangle's square is never computed.
QUERY_BLOCK = 128


def runs_on_float32_cpu(x: mx.array) -> bool:
    """Whether work on `x` belongs here."""
    return mx.default_device().type == mx.DeviceType.cpu and x.dtype == mx.float32


def exp(x: mx.array) -> mx.array:
    """eˣ for float32 x up to 87; below -87 it is 1e-38 instead of less."""
    fraction_power, exponent_bits = _exp2_parts(x)
    return fraction_power * mx.view(exponent_bits, mx.float32)


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """softmax(scale · Q Kᵀ, earlier keys only) V for `(B, H, T, D)` each, block of queries by block of queries.

    Equal to `mx.fast.scaled_dot_product_attention(..., mask="causal")` within rounding.
    """
    blocks = []
    for start in range(0, queries.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, queries.shape[2])
        scores = (queries[:, :, start:end] * scale) @ keys[:, :, :end].swapaxes(-1, -2)
        rows, columns = mx.arange(start, end)[:, None], mx.arange(end)[None]
        blocks.append(_softmax(_hide_later(scores, rows, columns)) @ values[:, :, :end])
    return mx.concatenate(blocks, axis=2) if len(blocks) > 1 else blocks[0]


@mx.custom_function
def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """log Σ exp(logits) - logits[target] in nats `(B, T)`, for logits `(B, T, V)` and targets `(B, T)`."""
    largest = mx.max(logits, axis=-1, keepdims=True)
    total = mx.sum(exp(logits - largest), axis=-1)
    return mx.log(total) + largest.squeeze(-1) - _picked(logits, targets)


@cross_entropy.vjp
def _cross_entropy_vjp(primals: tuple[mx.array, mx.array], cotangent: mx.array, losses: mx.array) -> tuple[mx.array, mx.array]:
    """softmax(logits) minus one at the target, times the cotangent."""
    logits, targets = primals
    log_total = (losses + _picked(logits, targets))[..., None]
    probabilities = exp(logits - log_total)
    vocabulary = mx.arange(logits.shape[-1])
    gradient = _minus_one_at(probabilities, vocabulary, targets[..., None], cotangent[..., None])
    return gradient, mx.zeros_like(targets)


def _picked(logits: mx.array, targets: mx.array) -> mx.array:
    return mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)


@mx.compile
def _minus_one_at(probabilities: mx.array, vocabulary: mx.array, target: mx.array, cotangent: mx.array) -> mx.array:
    return (probabilities - (vocabulary == target)) * cotangent


@mx.compile
def _exp2_parts(x: mx.array) -> tuple[mx.array, mx.array]:
    """eˣ = 2ⁿ · 2ᶠ: the value of 2ᶠ, and the bits of the float32 2ⁿ as int32."""
    power = mx.clip(x * LOG2_E, -126.0, 126.0)
    whole = mx.round(power)
    fraction = power - whole
    value = mx.array(EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        value = value * fraction + coefficient
    bits = mx.left_shift(whole.astype(mx.int32) + EXPONENT_BIAS, mx.array(MANTISSA_BITS, mx.int32))
    return value, bits


@mx.compile
def _hide_later(scores: mx.array, rows: mx.array, columns: mx.array) -> mx.array:
    return mx.where(columns <= rows, scores, -mx.inf)


@mx.custom_function
def _softmax(scores: mx.array) -> mx.array:
    weights = exp(scores - mx.max(scores, axis=-1, keepdims=True))
    # exp() leaves 1e-38 where a score is -inf; next to a weight of one that is nothing, and still it must be nothing.
    return mx.where(scores == -mx.inf, 0.0, weights) / mx.sum(weights, axis=-1, keepdims=True)


@_softmax.vjp
def _softmax_vjp(scores: mx.array, cotangent: mx.array, weights: mx.array) -> mx.array:
    """w (g - Σ w g): from the weights themselves, with no second exponential."""
    return _softmax_gradient(weights, cotangent, mx.sum(weights * cotangent, axis=-1, keepdims=True))


@mx.compile
def _softmax_gradient(weights: mx.array, cotangent: mx.array, mean: mx.array) -> mx.array:
    return weights * (cotangent - mean)
