"""GELU by rational functions is GELU: same values, same slopes, in every type."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_codegen.activations import gelu

# Dense where the curve bends, coarse far out, and the largest values that a float32 product survives.
WIDE_RANGE = np.concatenate([np.linspace(-12, 12, 20_001), np.linspace(-1e4, 1e4, 2_001), [1e12, -1e12, 1e-30, -1e-30, 0.0]])


def test_gelu_equals_the_reference_over_a_wide_range() -> None:
    """The quotient of polynomials is within 2e-6 of MLX's own tanh form, where values are of order one, and relative to x."""
    x = mx.array(WIDE_RANGE, mx.float32)
    error = mx.abs(gelu(x) - nn.gelu_approx(x)) / mx.maximum(1.0, mx.abs(x))
    assert mx.max(error).item() < 2e-6


def test_gelu_saturates_where_its_polynomials_would_explode() -> None:
    """Far out the result is x or 0, not infinity or NaN: the argument of tanh is clipped."""
    with mx.stream(mx.cpu):
        x = mx.array([40.0, 1e4, 1e12, -40.0, -1e4, -1e12])
        assert np.allclose(np.array(gelu(x)), [40.0, 1e4, 1e12, 0.0, 0.0, 0.0], rtol=1e-6, atol=1e-4)


def test_gelu_does_not_hide_a_value_that_is_not_finite() -> None:
    """An overflow in a layer must reach the loss, where the step notices it."""
    assert mx.isnan(gelu(mx.array([mx.nan]))).item()
    assert not mx.isfinite(gelu(mx.array([mx.inf]))).item()


def test_gradient_equals_the_references_gradient() -> None:
    """The hand-written derivative is the derivative."""
    x = mx.array(WIDE_RANGE[np.abs(WIDE_RANGE) <= 1e4], mx.float32)
    weights = mx.random.uniform(-1, 1, x.shape, key=mx.random.key(1))  # a cotangent other than one

    def weighted(function: object) -> mx.array:
        return mx.grad(lambda v: (function(v) * weights).sum())(x)  # type: ignore[operator]

    assert mx.max(mx.abs(weighted(gelu) - weighted(nn.gelu_approx))).item() < 1e-5


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_stays_half_and_differentiable(dtype: mx.Dtype) -> None:
    """The compute type is not silently widened, and mixed-precision training gets gradients of its own type."""
    x = mx.linspace(-6, 6, 101).astype(dtype)
    assert gelu(x).dtype == dtype
    assert mx.array_equal(gelu(x), nn.gelu_approx(x))
    gradient = mx.grad(lambda v: gelu(v).sum())(x)
    assert gradient.dtype == dtype
    assert mx.all(mx.isfinite(gradient)).item()
