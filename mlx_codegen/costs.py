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
        """The peak of a training step. Activations are given back while the gradients come, so the larger of both counts."""
        return self.weights_bytes + self.optimizer_bytes + max(self.gradients_bytes, self.activations_bytes)


def model_costs(config: ModelConfig, batch_size: int, gradient_checkpointing: bool = False, streams: int = 1) -> Costs:
    """Costs of training `config` on batches of `batch_size` full sequences, cut over `streams` (see `TrainStep`).

    Every stream makes gradients of its own; one more set is there while they are summed and the weights updated.
    """
    shapes = {name: value.shape for name, value in tree_flatten(Transformer(config).parameters())}
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    parameters = sum(sizes.values())
    vocabulary = sum(size for name, size in sizes.items() if name.startswith(("token_embedding", "output_proj")))
    tokens = batch_size * config.context_length
    return Costs(
        parameters=parameters,
        parameters_outside_vocabulary=parameters - vocabulary,
        training_flops_per_token=training_flops_per_token(config, shapes),
        weights_bytes=FLOAT_BYTES * parameters,
        gradients_bytes=FLOAT_BYTES * parameters * (min(streams, batch_size) + 1),
        optimizer_bytes=2 * FLOAT_BYTES * parameters,
        activations_bytes=FLOAT_BYTES * tokens * _activations_per_token(config, gradient_checkpointing),
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


def _activations_per_token(config: ModelConfig, gradient_checkpointing: bool) -> int:
    """Numbers kept for the backward pass, for each token; an estimate, within a fifth of what was measured.

    Each layer keeps about 10 C (residual stream, norms, queries, keys, values, attention output and gradients of
    them), the MLP's hidden values before and after the activation with one gradient (one more for a gated MLP), and a
    row of attention weights for each head. One layer at a time needs three more such rows while it is differentiated;
    the logits are there three times (scores, their softmax, their gradient). With checkpointing each layer keeps its
    input only, and one layer at a time the rest.
    """
    mlp_copies = 4 if config.family == "llama" else 3
    attention_rows = config.n_heads * config.context_length
    layer = 10 * config.d_model + mlp_copies * config.hidden_dim + attention_rows
    kept = config.n_layers * config.d_model + layer if gradient_checkpointing else config.n_layers * layer
    return kept + 3 * attention_rows + 3 * config.vocab_size


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
