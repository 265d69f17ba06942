"""The transformer: token ids in, next-token logits out. Read from top to bottom; each part uses those above it.

Shapes are written with letters: B sequences in a batch, T tokens in a sequence, H heads, D width of one head,
C = H x D width of the model, V tokens in the vocabulary.

Sources: GPT-2 (Radford et al., 2019); GPT-NeoX (Black et al., 2022, arXiv 2204.06745); Llama (Touvron et al., 2023,
arXiv 2302.13971); rotary positions (Su et al., 2021, arXiv 2104.09864); SwiGLU (Shazeer, 2020, arXiv 2002.05202).
"""

import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_codegen.activations import gelu, silu
from mlx_codegen.config import ModelConfig
from mlx_codegen.cpu_attention import causal_attention
from mlx_codegen.exponential import runs_on_float32_cpu

INIT_STD = 0.02  # GPT-2's standard deviation for all matrices
NORM_EPSILON = 1e-5


class KVCache:
    """Keys and values of one layer for the tokens seen so far, so that a new token costs one step instead of T.

    Room is made for `capacity` tokens at the first use: growing would copy everything again and again.
    `dropped` tokens were seen before those that are kept: rotary positions go on counting.
    """

    def __init__(self, capacity: int, dropped: int = 0) -> None:
        self.capacity = capacity
        self.dropped = dropped
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add keys and values `(B, H, T, D)`; return all so far `(B, H, offset, D)`."""
        batch, heads, length, width = keys.shape
        if self.keys is None or self.values is None:
            self.keys = mx.zeros((batch, heads, self.capacity, width), keys.dtype)
            self.values = mx.zeros((batch, heads, self.capacity, width), values.dtype)
        start, self.offset = self.offset, self.offset + length
        self.keys[:, :, start : self.offset] = keys
        self.values[:, :, start : self.offset] = values
        return self.keys[:, :, : self.offset], self.values[:, :, : self.offset]

    def select(self, rows: mx.array) -> None:
        """Keep these rows of the batch, in this order; a row may come several times."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def drop_first(self, count: int) -> None:
        """Forget the first `count` tokens of every row, to make room."""
        if self.keys is not None and self.values is not None:
            room = mx.zeros((*self.keys.shape[:2], count, self.keys.shape[3]), self.keys.dtype)
            self.keys = mx.concatenate([self.keys[:, :, count:], room], axis=2)
            self.values = mx.concatenate([self.values[:, :, count:], room], axis=2)
        self.offset -= count
        self.dropped += count


class CausalSelfAttention(nn.Module):
    """Each token gathers values from itself and earlier tokens: softmax(Q Kᵀ / √D) V, head by head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.head_dim = config.head_dim
        self.rope_theta = None if config.family == "gpt2" else config.rope_theta
        # One matrix product for queries, keys and values instead of three.
        self.qkv_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def __call__(self, x: mx.array, cache: KVCache | None = None, mask: mx.array | None = None) -> mx.array:
        B, T, C = x.shape
        # (B, T, 3 C) is cut into three, and each (B, T, C) into heads (B, H, T, D)
        heads = (B, T, self.n_heads, self.head_dim)
        queries, keys, values = (part.reshape(heads).transpose(0, 2, 1, 3) for part in mx.split(self.qkv_proj(x), 3, axis=-1))
        if self.rope_theta is not None:
            position = cache.dropped + cache.offset if cache is not None else 0
            queries, keys = self._rotate(queries, position), self._rotate(keys, position)
        if cache is not None:
            keys, values = cache.append(keys, values)
        y = self._attend(queries, keys, values, cache is not None, mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(B, T, C))

    def _attend(self, queries: mx.array, keys: mx.array, values: mx.array, cached: bool, mask: mx.array | None) -> mx.array:
        """softmax(Q Kᵀ / √D) V, where no query sees a later key: MLX's fused kernel, or our own on a CPU in training."""
        scale = self.head_dim**-0.5
        if not cached and runs_on_float32_cpu(queries):
            return causal_attention(queries, keys, values, scale)
        # "causal" lines the queries up with the last keys, so it is right with and without a cache.
        causal = "causal" if queries.shape[2] > 1 else None
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=causal if mask is None else mask)

    def _rotate(self, x: mx.array, position: int) -> mx.array:
        """Turn each pair of features by an angle that grows with the token's position."""
        return mx.fast.rope(x, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=position)


class GeluMLP(nn.Module):
    """Widen, bend, narrow: W₂ gelu(W₁ x). GELU in its tanh form, as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.hidden_dim, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.d_model, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(gelu(self.up_proj(x)))


class SwiGluMLP(nn.Module):
    """One half gates the other: W₃ (silu(W₁ x) · W₂ x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.hidden_dim, bias=config.bias)
        self.up_proj = nn.Linear(config.d_model, config.hidden_dim, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.d_model, bias=config.bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def make_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm for llama, LayerNorm for the others."""
    if config.family == "llama":
        return nn.RMSNorm(config.d_model, eps=NORM_EPSILON)
    return nn.LayerNorm(config.d_model, eps=NORM_EPSILON, bias=config.bias)


class Block(nn.Module):
    """Attention, then MLP, each normalised before and added to the residual stream after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = SwiGluMLP(config) if config.family == "llama" else GeluMLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.parallel = config.family == "gpt_neox"

    def __call__(self, x: mx.array, cache: KVCache | None = None, mask: mx.array | None = None) -> mx.array:
        attended = self.dropout(self.attention(self.attention_norm(x), cache, mask))
        if self.parallel:  # GPT-NeoX: both read the same x
            return x + attended + self.dropout(self.mlp(self.mlp_norm(x)))
        x = x + attended
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def recomputed(block: Block, x: mx.array) -> mx.array:
    """`block(x)` that keeps only `x`, and computes the rest again in the backward pass (gradient checkpointing).

    `nn.utils.checkpoint` does not do here: it draws new dropout masks the second time, so the gradients are wrong, and
    lets MLX put the weights' gradients off to the end, so all that was recomputed stays in memory until then.
    """
    names, values = zip(*tree_flatten(block.trainable_parameters()), strict=True)
    key = mx.array(mx.random.state[0])

    def forward(*inputs: mx.array) -> mx.array:
        block.update(tree_unflatten(list(zip(names, inputs, strict=False))))
        return block(inputs[-1])

    run = mx.custom_function(forward)

    @run.vjp
    def backward(inputs: tuple[mx.array, ...], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        later_key = mx.array(mx.random.state[0])
        mx.random.state[0][:] = key
        _, gradients = mx.vjp(forward, mx.depends(list(inputs), [cotangent]), [cotangent])
        mx.random.state[0][:] = later_key
        *of_weights, of_x = gradients
        # Earlier blocks go on only when this one's weights have their gradients.
        return *of_weights, mx.depends([of_x], of_weights)[0]

    return run(*values, x)


class Transformer(nn.Module):
    """The whole model. Family differences: gpt2 learns a vector per position; gpt_neox has its own output matrix."""

    def __init__(self, config: ModelConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.family == "gpt2":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [Block(config) for _ in range(config.n_layers)]
        self.final_norm = make_norm(config)
        if config.family == "gpt_neox":
            self.output_proj = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._init_weights()

    def __call__(self, tokens: mx.array, cache: list[KVCache] | None = None) -> mx.array:
        """Logits `(B, T, V)` for the token after each of `tokens` `(B, T)`.

        With a cache (see `make_cache`), `tokens` are those that follow what the cache has already seen.
        """
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(self, tokens: mx.array, cache: list[KVCache] | None = None, starts: mx.array | None = None) -> mx.array:
        """Final normalised activations `(B, T, C)`.

        Rows of different lengths are padded on the left: the text of row b begins at place `starts[b]` of the cache.
        """
        x = self.token_embedding(tokens)
        offset = cache[0].offset if cache is not None else 0
        places = mx.arange(offset, offset + tokens.shape[1])
        mask = None if starts is None else padding_mask(places, starts)
        if self.config.family == "gpt2":
            positions = places if starts is None else mx.maximum(places - starts[:, None], 0)
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training:
                x = recomputed(block, x)
            else:
                x = block(x, cache[index] if cache is not None else None, mask)
        return self.final_norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """Scores `(B, T, V)` of hidden states `(B, T, C)`."""
        return hidden @ self.output_table().T

    def output_table(self) -> mx.array:
        """The matrix `(V, C)` that scores each token."""
        if self.config.family == "gpt_neox":
            return self.output_proj.weight
        return self.token_embedding.weight  # tied: a token is scored by its own embedding

    def make_cache(self) -> list[KVCache]:
        """An empty cache for one generation, with room for the whole context."""
        return [KVCache(self.config.context_length) for _ in self.blocks]

    def _init_weights(self) -> None:
        """GPT-2's initialisation: N(0, 0.02²), and projections onto the residual stream smaller by √(2 layers),
        because that many of them add up there."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers)
        weights = []
        for name, value in tree_flatten(self.parameters()):
            if value.ndim == 2:
                std = residual_std if name.endswith(("out_proj.weight", "down_proj.weight")) else INIT_STD
                weights.append((name, mx.random.normal(value.shape, scale=std)))
            elif name.endswith(".bias"):
                weights.append((name, mx.zeros_like(value)))
        self.load_weights(weights, strict=False)


def padding_mask(places: mx.array, starts: mx.array) -> mx.array:
    """Which key each query may see, `(B, 1, T, S)`: from its row's start to itself; `places` `(T,)` are the queries'.

    What is padding sees itself: a query without any key would be NaN.
    """
    keys = mx.arange(places[-1].item() + 1)
    seen = (keys <= places[:, None]) & (keys >= starts[:, None, None])
    return (seen | (keys == places[:, None]))[:, None]


def count_parameters(model: Transformer) -> int:
    """Exact number of trained values."""
    return sum(value.size for _, value in tree_flatten(model.parameters()))
