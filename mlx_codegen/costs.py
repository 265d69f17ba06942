"""What a model costs: parameters, arithmetic per token, memory for training. Formulas, checked against measurements."""

from dataclasses import dataclass

from mlx.utils import tree_flatten

from mlx_codegen.config import ModelConfig
from mlx_codegen.model import Transformer

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Costs:
    """All sizes of one configuration; memory in bytes for float32 training."""

    parameters: int
    parameters_outside_vocabulary: int
    training_flops_per_token: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def training_bytes(self) -> int:
        """Everything that is in memory at the peak of a training step."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


def model_costs(config: ModelConfig, batch_size: int, gradient_checkpointing: bool = False) -> Costs:
    """Costs of training `config` on batches of `batch_size` full sequences."""
    shapes = {name: value.shape for name, value in tree_flatten(Transformer(config).parameters())}
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    parameters = sum(sizes.values())
    vocabulary = sum(size for name, size in sizes.items() if name.startswith(("token_embedding", "output_proj")))
    return Costs(
        parameters=parameters,
        parameters_outside_vocabulary=parameters - vocabulary,
        training_flops_per_token=training_flops_per_token(config, shapes),
        weights_bytes=FLOAT_BYTES * parameters,
        gradients_bytes=FLOAT_BYTES * parameters,
        optimizer_bytes=2 * FLOAT_BYTES * parameters,
        activations_bytes=FLOAT_BYTES * batch_size * _activations_per_sequence(config, gradient_checkpointing),
    )


def training_flops_per_token(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """6 for each matrix entry that multiplies a token (2 forward, 4 backward), plus causal attention.

    A tied table counts once, as the output matrix; reading an embedding is no arithmetic. Attention multiplies each
    query with T/2 keys and values on average: 2 · 2 · T/2 · C forward, three times that in all, per layer
    (Kaplan et al., 2020, arXiv 2001.08361; Chowdhery et al., 2022, arXiv 2204.02311, appendix B, halved for causality).
    """
    matrices = {n: _product(s) for n, s in shapes.items() if len(s) == 2 and "embedding" not in n and n != "output_proj.weight"}
    output = config.vocab_size * config.d_model
    attention = 6 * config.n_layers * config.context_length * config.d_model
    return 6 * (sum(matrices.values()) + output) + attention


def _activations_per_sequence(config: ModelConfig, gradient_checkpointing: bool) -> int:
    """Numbers kept for the backward pass of one sequence, estimated.

    Per token and layer: the residual stream, two norms, queries, keys, values, attention output and its projection
    (about 10 C) and the MLP's hidden values before and after the activation (2 to 4 of its width). Attention keeps
    its T x T weights of one layer at a time while that layer is differentiated; the logits are there three times
    (scores, their softmax, their gradient). With checkpointing only the residual stream of each layer stays.
    """
    tokens, width = config.context_length, config.d_model
    mlp_copies = 4 if config.family == "llama" else 2
    per_layer = tokens * (10 * width + mlp_copies * config.hidden_dim)
    attention = 3 * config.n_heads * tokens * tokens
    logits = 3 * tokens * config.vocab_size
    if gradient_checkpointing:
        return config.n_layers * tokens * width + per_layer + attention + logits
    return config.n_layers * per_layer + attention + logits


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
