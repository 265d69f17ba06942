"""Half precision learns what float32 learns: 200 steps on real text, the same batches, the losses side by side."""

from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny_run import phase_settings

from mlx_codegen.config import ModelConfig
from mlx_codegen.model import Transformer
from mlx_codegen.training.step import TrainStep

STEPS, ROWS, LENGTH = 200, 4, 32
NOISE = 0.03
"""Two float32 runs that differ in the order of additions end this far apart at most."""


@lru_cache(maxsize=1)
def batches() -> list[mx.array]:
    """Bytes of the bundled tasks' files, in random places, the same for every precision."""
    files = sorted((Path(__file__).parents[1] / "data" / "bash" / "monitoring").glob("*.yaml"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH - 1, (STEPS, ROWS))
    return [mx.array(np.stack([text[start : start + LENGTH + 1] for start in row]).astype(np.int32)) for row in starts]


@lru_cache(maxsize=3)
def losses(precision: str) -> np.ndarray:
    mx.random.seed(2)
    model = Transformer(ModelConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=256, context_length=LENGTH))
    stream = mx.default_stream(mx.default_device())
    step = TrainStep(model, phase_settings(learning_rate=5e-3), precision, [stream], compiled=False)
    found = []
    for batch in batches():
        loss, _, finite = step([batch], 5e-3)
        mx.eval(loss, finite, *step.arrays())
        assert finite.item() or precision == "float16", "only a loss scale that is too large may cost a step"
        found.append(loss.item())
    return np.array(found)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_follows_the_curve_of_float32(precision: str) -> None:
    """The mean of every 40 steps lies within the noise; and all have learnt something."""
    half, full = (losses(kind).reshape(-1, 40).mean(axis=1) for kind in (precision, "float32"))
    assert full[-1] < full[0] - 0.5
    assert np.abs(half / full - 1).max() < NOISE, (half, full)
