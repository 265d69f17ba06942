"""What each head looks at: the weights softmax(Q Kᵀ / √D) of every layer, computed again from the model's own parts.

In generation they never exist as a whole: the fused kernel adds values up block by block (Dao et al., 2022, arXiv
2205.14135). So the same queries and keys are multiplied once more here, and a test compares the result with the model's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_codegen.errors import UserError
from mlx_codegen.model import CausalSelfAttention, Transformer
from mlx_codegen.tokenizer import Tokenizer


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer for one text."""

    weights: mx.array
    """`(H, T, T)` float32: row t holds what token t takes from each token; it sums to 1 and is 0 after t."""
    values: mx.array
    """`(H, T, D)`: what is taken. Weights times values, put through the output projection, is the layer's output."""


@dataclass(frozen=True)
class HeadMap:
    """Attention weights `(T, T)` of one head, which is known by its numbers from 1."""

    layer: int
    head: int
    weights: mx.array


def attention_layers(model: Transformer, ids: list[int]) -> Iterator[LayerAttention]:
    """Yields the attention of each layer, first to last, for a text of T tokens, T no more than the context length."""
    x = model.token_embedding(mx.array([ids]))
    if model.config.family == "gpt2":
        x = x + model.position_embedding(mx.arange(len(ids)))
    for block in model.blocks:
        yield _attend(block.attention, block.attention_norm(x))
        x = block(x)


def head_maps(model: Transformer, ids: list[int], layer: int | None = None, head: int | None = None) -> list[HeadMap]:
    """All heads; or those of one layer, or one of each layer, or one. Raises UserError for numbers that do not exist."""
    _check_number("layer", layer, len(model.blocks))
    _check_number("head", head, model.config.n_heads)
    return [
        HeadMap(number, which, weights)
        for number, attention in enumerate(attention_layers(model, ids), 1)
        if layer in (None, number)
        for which, weights in enumerate(attention.weights, 1)
        if head in (None, which)
    ]


def _check_number(what: str, number: int | None, count: int) -> None:
    if number is not None and not 1 <= number <= count:
        raise UserError(f"--{what} {number}: the model has {what}s 1 to {count}")


def find_token(tokenizer: Tokenizer, ids: list[int], wanted: str) -> int:
    """Place, from 0, of a token that a person names by its number, from 1, or by its text; the last one if there are several.

    Blanks around the text do not matter. Raises UserError if there is no such token.
    """
    if wanted.isdecimal():
        if not 1 <= int(wanted) <= len(ids):
            raise UserError(f"--token {wanted}: the text has tokens 1 to {len(ids)}")
        return int(wanted) - 1
    for same in (lambda text: text == wanted, lambda text: text.strip() == wanted.strip()):
        places = [place for place, index in enumerate(ids) if same(tokenizer.piece(index))]
        if places and wanted.strip():
            return places[-1]
    raise UserError(f'--token "{wanted}": no token of the text reads so; take its number from the map (leave --token out)')


def _attend(attention: CausalSelfAttention, x: mx.array) -> LayerAttention:
    """Attention of one layer for its normalised input `(1, T, C)`."""
    T = x.shape[1]
    qkv = attention.qkv_proj(x).reshape(T, 3, attention.n_heads, attention.head_dim).transpose(1, 2, 0, 3)  # (3, H, T, D)
    queries, keys, values = qkv[0], qkv[1], qkv[2]
    if attention.rope_theta is not None:
        queries, keys = (attention._rotate(part[None], 0)[0] for part in (queries, keys))
    scores = queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2) * attention.head_dim**-0.5
    causal = mx.tril(mx.ones((T, T), mx.bool_))
    return LayerAttention(mx.softmax(mx.where(causal, scores, -mx.inf), axis=-1), values)


def pooled(weights: mx.array, size: int) -> list[list[float]]:
    """A map `(T, T)` made small, at most `size` a side: each cell is the largest weight of its share."""
    T = weights.shape[0]
    cells = min(T, size)
    starts = [cell * T // cells for cell in range(cells)]
    small: list[list[float]] = np.maximum.reduceat(np.maximum.reduceat(np.array(weights), starts, 0), starts, 1).tolist()
    return small
