"""Gradient checkpointing: the same training with less memory, nothing else changed."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_codegen.config import Family, ModelConfig, PhaseConfig, SourceConfig
from mlx_codegen.model import Transformer
from mlx_codegen.training.step import TrainStep

PHASE = PhaseConfig(sources=(SourceConfig(name="any", bundled="english"),), steps=1, learning_rate=1e-2)


def trained(config: ModelConfig, gradient_checkpointing: bool, steps: int = 3) -> tuple[list[float], dict[str, mx.array], int]:
    """Losses, final weights and peak memory of a short training from one seed."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.random.seed(7)
    model = Transformer(config, gradient_checkpointing)
    step = TrainStep(model, PHASE, "float32", [mx.default_stream(mx.default_device())], compiled=False)
    mx.eval(step.arrays())
    mx.reset_peak_memory()
    losses = []
    for number in range(steps):
        tokens = (mx.arange(config.context_length + 1) * (number + 3) % config.vocab_size)[None]
        loss, norm, finite = step([mx.concatenate([tokens] * 4)], 1e-2)
        mx.eval(loss, norm, finite, *step.arrays())
        losses.append(loss.item())
    return losses, dict(tree_flatten(model.parameters())), int(mx.get_peak_memory()) - before


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_recomputing_trains_to_the_same_weights_with_dropout(family: Family) -> None:
    """The second forward pass must drop what the first one dropped, or the gradients belong to another network."""
    config = ModelConfig(family=family, n_layers=3, d_model=32, n_heads=2, vocab_size=60, context_length=24, dropout=0.3)
    losses, weights, _ = trained(config, gradient_checkpointing=False)
    losses_again, weights_again, _ = trained(config, gradient_checkpointing=True)
    assert losses_again == pytest.approx(losses, rel=1e-6)
    for name, value in weights.items():
        assert mx.allclose(weights_again[name], value, rtol=1e-4, atol=1e-6), name


def test_recomputing_needs_far_less_memory() -> None:
    """What is recomputed must be given back layer by layer: MLX's own order of work keeps all of it to the end."""
    config = ModelConfig(n_layers=8, d_model=64, n_heads=4, vocab_size=64, context_length=128)
    _, _, usual = trained(config, gradient_checkpointing=False, steps=1)
    _, _, checkpointed = trained(config, gradient_checkpointing=True, steps=1)
    assert checkpointed < 0.6 * usual
