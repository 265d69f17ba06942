"""How the next token is drawn from the model's scores: small pure functions on log-probabilities `(..., V)`.

The order is that of mlx-lm, and each function gives what its namesake there gives: top-p, then top-k, then
temperature. (mlx_lm itself is not imported: it brings transformers along, which takes longer than a short generation.)
"""

import mlx.core as mx


def apply_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Keep the k likeliest tokens (Fan et al., 2018, arXiv 1805.04833); 0 or more than V keeps all."""
    if not 0 < top_k < logprobs.shape[-1]:
        return logprobs
    dropped = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, dropped, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def apply_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Keep the smallest set of likeliest tokens whose probabilities sum to p (Holtzman et al., 2019, arXiv 1904.09751).

    1 keeps all. Tokens as likely as the last one kept stay, too.
    """
    if top_p >= 1.0:
        return logprobs
    ascending = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)  # mass of all likelier tokens
    total = above[..., :1] + probabilities[..., :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ascending, dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)


def distribution(logprobs: mx.array, temperature: float, top_k: int, top_p: float) -> mx.array:
    """The probabilities `(..., V)` that `sample` draws with, from log-probabilities `(..., V)`."""
    if temperature == 0:
        return (mx.arange(logprobs.shape[-1]) == mx.argmax(logprobs, axis=-1, keepdims=True)).astype(mx.float32)
    return mx.softmax(apply_top_k(apply_top_p(logprobs, top_p), top_k) / temperature, axis=-1)


def sample(logprobs: mx.array, keys: mx.array, temperature: float, top_k: int, top_p: float) -> mx.array:
    """Draw token ids `(B,)` from log-probabilities `(B, V)`, row b with the random key `keys[b]` `(B, 2)`.

    Temperature 0 takes the likeliest. The draw is the largest of log-probability plus Gumbel noise (Gumbel, 1954).
    """
    if temperature == 0:
        return mx.argmax(logprobs, axis=-1)
    kept = apply_top_k(apply_top_p(logprobs, top_p), top_k)
    noise = mx.vmap(lambda key: mx.random.gumbel(logprobs.shape[-1:], key=key))(keys)
    return mx.argmax(kept / temperature + noise, axis=-1)
