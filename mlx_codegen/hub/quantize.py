"""Weights in 4 or 8 bits, through mlx-lm's own converter, so that what it writes is what it reads."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.hub.layouts import Weights, names_without_mlx_lm

GROUP_SIZES = (64, 32)
"""Values that share a scale: mlx-lm's default, and MLX's smallest for narrow models."""


def quantized(folder: Path, bits: int) -> tuple[Weights, dict[str, Any]]:
    """Weights as mlx-lm saves them, and its `config.json`, from a folder with `config.json` and `model.safetensors`.

    Matrices and tables become `bits` wide with a scale and an offset for each group of values; norms stay as they are.
    Raises UserError for a shape that mlx-lm does not read, or cannot cut into groups.
    """
    from mlx_lm.utils import load_model, quantize_model

    try:
        model, config = load_model(folder)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"mlx-lm cannot read a model of this shape, so it cannot quantise it ({reason}); export without"
        ) from None
    widths = {value.shape[-1] for name, value in tree_flatten(model.parameters()) if value.ndim == 2}
    group_size = next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), None)
    if group_size is None:
        raise UserError(f"d_model and d_ff must be multiples of {GROUP_SIZES[-1]} to quantise; export without --quantize")
    with redirect_stdout(io.StringIO()):  # mlx-lm prints, a library of ours does not
        model, config = quantize_model(model, config, group_size, bits)
    config["quantization_config"] = config["quantization"]  # the name that other readers know
    return dict(tree_flatten(model.parameters())), config


def dequantized(weights: Weights, quantization: dict[str, Any], config: ModelConfig) -> Weights:
    """The way back: `quantized` weights as float32 matrices, under the names and in the shapes of the Hugging Face layout.

    Raises KeyError, TypeError or ValueError for weights that do not fit `quantization`.
    """
    result: Weights = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        if f"{layer}.scales" not in weights:
            result[name] = value
        elif kind == "weight":
            scales, offsets = (weights[f"{layer}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            result[name] = mx.dequantize(value, scales, offsets, quantization["group_size"], quantization["bits"])
        elif kind == "bias":
            result[name] = value
    return names_without_mlx_lm(result, config)
