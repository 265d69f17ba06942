"""GELU and SiLU, fast on every device.

Both are x σ(z), σ(z) = 1 / (1 + e⁻ᶻ): SiLU with z = x, GELU's tanh form with z = 2√(2/π) (x + 0.044715 x³), because
(1 + tanh(z/2)) / 2 = σ(z). On a CPU, MLX computes tanh and exp one number at a time; it was a fifth of a training step of
`nano`. There the functions below take over, with exponentials from `exponential.py` and the derivative written out,
which needs no second one. GPUs have fast instructions for both and keep MLX's own.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_codegen.exponential import LOG2_E, exp2, runs_on_float32_cpu

GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR
LARGEST_POWER = 126.0
FEW = 4096
"""Up to so many numbers (writing one text) the fixed cost of many operations outweighs what they save."""


def gelu(x: mx.array) -> mx.array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), element by element (Hendrycks and Gimpel, 2016, arXiv 1606.08415)."""
    if runs_on_float32_cpu(x) and x.size > FEW:
        return _cpu_gelu(x)[0]
    return nn.gelu_approx(x)


def silu(x: mx.array) -> mx.array:
    """x σ(x), element by element (Hendrycks and Gimpel, 2016; "swish" in Ramachandran et al., 2017, arXiv 1710.05941)."""
    if runs_on_float32_cpu(x) and x.size > FEW:
        return _cpu_silu(x)[0]
    return nn.silu(x)


def _sigmoid_of_minus(power: mx.array) -> mx.array:
    """1 / (1 + 2ᵖ)."""
    return 1 / (1 + exp2(mx.minimum(power, LARGEST_POWER)))


@mx.custom_function
def _cpu_gelu(x: mx.array) -> tuple[mx.array, mx.array]:
    """GELU, and σ for the backward pass."""
    sigmoid = _sigmoid_of_minus(x * (x * x * (-GELU_CUBIC * LOG2_E) - GELU_LINEAR * LOG2_E))
    return x * sigmoid, sigmoid


@_cpu_gelu.vjp
def _cpu_gelu_vjp(x: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]) -> mx.array:
    """σ + x σ (1 - σ) dz/dx, and x σ is the output."""
    output, sigmoid = outputs
    slope = x * x * (3 * GELU_CUBIC) + GELU_LINEAR
    return cotangents[0] * (sigmoid + output * (1 - sigmoid) * slope)


@mx.custom_function
def _cpu_silu(x: mx.array) -> tuple[mx.array, mx.array]:
    """SiLU, and σ for the backward pass."""
    sigmoid = _sigmoid_of_minus(x * -LOG2_E)
    return x * sigmoid, sigmoid


@_cpu_silu.vjp
def _cpu_silu_vjp(x: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]) -> mx.array:
    output, sigmoid = outputs
    return cotangents[0] * (sigmoid + output * (1 - sigmoid))
