"""How the next token is drawn from the model's scores: small pure functions on log-probabilities `(..., V)`.

They keep what mlx-lm keeps, and each function gives what its namesake there gives: top-p, top-k, and after them the
temperature. (mlx_lm itself is not imported: it brings transformers along, which takes longer than a short generation.)
"""

import mlx.core as mx


def apply_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Keep the k likeliest tokens (Fan et al., 2018, arXiv 1805.04833); 0 or more than V keeps all."""
    if not 0 < top_k < logprobs.shape[-1]:
        return logprobs
    dropped = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, dropped, mx.array(-mx.inf, logprobs.dtype), axis=-1)


def apply_top_p(logprobs: mx.array, top_p: float, total: float | None = None) -> mx.array:
    """Keep the smallest set of likeliest tokens whose probabilities sum to p (Holtzman et al., 2019, arXiv 1904.09751).

    1 keeps all. Tokens as likely as the last one kept stay, too. p is a share of `total`: of all that is there, unless
    some are known to be missing.
    """
    if top_p >= 1.0:
        return logprobs
    ascending = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ascending.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)  # mass of all likelier tokens
    mass = above[..., :1] + probabilities[..., :1] if total is None else total
    dropped = (above >= top_p * mass).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ascending, dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)


def candidates(logprobs: mx.array, top_k: int, top_p: float) -> tuple[mx.array, mx.array]:
    """Ids and log-probabilities `(..., K)` of the tokens that may be drawn; -inf for those that top-p drops, K = V without top-k.

    Both filters keep the likeliest, so it does not matter which comes first. Top-k does: it need not sort, and what is
    sorted for top-p is then 50 numbers and not a whole vocabulary, which took as long as the layers of a small model.
    """
    vocabulary = logprobs.shape[-1]
    if not 0 < top_k < vocabulary:
        return mx.broadcast_to(mx.arange(vocabulary), logprobs.shape), apply_top_p(logprobs, top_p, total=1.0)
    ids = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., :top_k]
    return ids, apply_top_p(mx.take_along_axis(logprobs, ids, axis=-1), top_p, total=1.0)


def distribution(logprobs: mx.array, temperature: float, top_k: int, top_p: float) -> mx.array:
    """The probabilities `(..., V)` that `sample` draws with, from log-probabilities `(..., V)`."""
    if temperature == 0:
        return (mx.arange(logprobs.shape[-1]) == mx.argmax(logprobs, axis=-1, keepdims=True)).astype(mx.float32)
    ids, kept = candidates(logprobs, top_k, top_p)
    return mx.put_along_axis(mx.zeros_like(logprobs), ids, mx.softmax(kept / temperature, axis=-1), axis=-1)


def sample(logprobs: mx.array, keys: mx.array, temperature: float, top_k: int, top_p: float) -> mx.array:
    """Draw token ids `(B,)` from log-probabilities `(B, V)`, row b with the random key `keys[b]` `(B, 2)`.

    Temperature 0 takes the likeliest. The draw is the largest of log-probability plus Gumbel noise (Gumbel, 1954).
    """
    if temperature == 0:
        return mx.argmax(logprobs, axis=-1)
    ids, kept = candidates(logprobs, top_k, top_p)
    # A random number for each token and not for each candidate: whatever order they come in, the same one is drawn.
    uniform = mx.vmap(lambda key: mx.random.uniform(shape=logprobs.shape[-1:], key=key))(keys)
    noise = -mx.log(-mx.log(mx.take_along_axis(uniform, ids, axis=-1)))
    drawn = mx.argmax(kept / temperature + noise, axis=-1, keepdims=True)
    return mx.take_along_axis(ids, drawn, axis=-1)[:, 0]
