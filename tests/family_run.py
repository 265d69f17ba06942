"""Small models of all three families, made once each (a plugin of conftest.py).

Their weights are random, but large: what they write is nonsense that never repeats itself, so that equal text of two
programs is no accident, as it would be with the blanks that a model writes after a minute's training.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from tiny_run import tiny_config, tiny_tokenizer

from mlx_codegen.checkpoint import Progress, save_checkpoint
from mlx_codegen.config import Family, ModelConfig
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.run_folder import RunFolder

FAMILIES: tuple[Family, ...] = get_args(Family)
LOUDNESS = 8.0
"""Times the usual initial weights."""
PROGRESS = Progress("code", step=20, total_steps=30, tokens_seen=5000, validation={"loss": 5.0, "bits_per_byte": 2.5})


@pytest.fixture(scope="session")
def family_checkpoint(prepared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of a family, with a window for a prompt and an answer. To be read, not changed."""
    tokenizer = tiny_tokenizer(RunFolder(prepared_run))

    @cache
    def make(family: str) -> Path:
        file = tmp_path_factory.mktemp(family) / "best.safetensors"
        config = tiny_config(f"model.family={family}", "model.d_model=64", "model.context_length=128", "model.dropout=0")
        # One family without biases, whose files need zeros for them.
        shape = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size, "bias": family != "gpt2"})
        save_checkpoint(file, loud_model(shape, tokenizer), tokenizer, config, PROGRESS)
        return file

    return make


def loud_model(config: ModelConfig, tokenizer: Tokenizer) -> Transformer:
    """Matrices and biases far from zero; what stands for no whole character is never the likeliest token."""
    mx.random.seed(1)
    model = Transformer(config)
    weights = [(name, _loud(name, value)) for name, value in tree_flatten(model.parameters())]
    model.update(tree_unflatten(weights))
    readable = [
        len(tokenizer.piece(index)) <= 2 or not tokenizer.piece(index).startswith("<") for index in range(config.vocab_size)
    ]
    table = model.output_proj if config.family == "gpt_neox" else model.token_embedding
    table.weight = table.weight * mx.array(readable)[:, None]
    return model


def _loud(name: str, value: mx.array) -> mx.array:
    return value + mx.random.normal(value.shape, scale=0.1) if value.ndim == 1 else value * LOUDNESS
