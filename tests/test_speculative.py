"""Speculative decoding: whatever the draft guesses, the texts are those of the large model."""

from collections import Counter
from itertools import islice

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from tiny_run import TrainedRun, tiny_tokenizer

import mlx_codegen
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.generation.engine import Engine
from mlx_codegen.generation.samplers import distribution
from mlx_codegen.generation.speculative import _verify, speculate
from mlx_codegen.model import Transformer

FAMILIES = ["gpt2", "gpt_neox", "llama"]


def random_model(seed: int, family: str = "gpt2", vocab_size: int = 12, context_length: int = 24) -> Transformer:
    mx.random.seed(seed)
    config = ModelConfig(
        family=family,  # type: ignore[arg-type]
        n_layers=2, d_model=16, n_heads=2, vocab_size=vocab_size, context_length=context_length,
    )  # fmt: skip
    model = Transformer(config)
    model.update(tree_map(lambda p: p + 0.4 * mx.random.normal(p.shape), model.parameters()))
    model.eval()
    return model


def probabilities(temperature: float, top_k: int = 0) -> "object":
    def of(logits: mx.array, first: bool) -> mx.array:
        return distribution(logits - mx.logsumexp(logits, axis=-1, keepdims=True), temperature, top_k, 1.0)

    return of


def windowed_greedy(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, by reading the window anew each time; it moves on by halves as the engine's does."""
    window, history, window_length = list(prompt), list(prompt), model.config.context_length
    while len(history) < len(prompt) + count:
        token = int(mx.argmax(model(mx.array([window]))[0, -1]).item())
        history.append(token)
        window = [*window, token] if len(window) < window_length else history[-(window_length // 2) :]
    return history[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("draft_window", [24, 10])
def test_greedy_text_is_that_of_the_large_model(family: str, draft_window: int) -> None:
    """Token for token over several windows, with a draft that mostly guesses wrong and one that reads less."""
    model, draft = random_model(1, family), random_model(2, context_length=draft_window)
    got = list(islice(speculate(model, draft, [3, 1, 4], 0, probabilities(0.0)), 80))  # type: ignore[arg-type]
    assert got == windowed_greedy(model, [3, 1, 4], 80)


def test_a_draft_equal_to_the_model_is_always_accepted() -> None:
    """Then every round gives all its guesses and one more."""
    model = random_model(1)
    p = mx.softmax(mx.random.normal((5, 12), key=mx.random.key(0)), axis=-1)
    for seed in range(50):
        accepted, _ = _verify(p, p[:4], mx.array([1, 2, 3, 4]), mx.random.key(seed))
        assert accepted.item() == 4
    assert list(islice(speculate(model, model, [3], 0, probabilities(0.0)), 30)) == windowed_greedy(model, [3], 30)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [4])
def test_same_distribution_as_the_large_model(top_k: int) -> None:
    """Pairs of tokens over 1,500 seeds: shares within 0.05 of the model's own probabilities; the draft's differ by far more."""
    model, draft = random_model(1, vocab_size=6), random_model(5, vocab_size=6)
    of = probabilities(1.0, top_k)

    def exact(network: Transformer) -> dict[tuple[int, int], float]:
        first = of(network(mx.array([[2]]))[0, -1:], True)[0]  # type: ignore[operator]
        shares = {}
        for a in range(6):
            second = of(network(mx.array([[2, a]]))[0, -1:], False)[0]  # type: ignore[operator]
            shares |= {(a, b): first[a].item() * second[b].item() for b in range(6)}
        return shares

    runs = 1500
    drawn = Counter(tuple(islice(speculate(model, draft, [2], seed, of, guesses=2), 2)) for seed in range(runs))  # type: ignore[arg-type]
    expected, of_draft = exact(model), exact(draft)
    assert max(abs(drawn[pair] / runs - share) for pair, share in expected.items()) < 0.05
    assert max(abs(of_draft[pair] - share) for pair, share in expected.items()) > 0.15, "the test could not tell"


def test_engine_with_a_draft(trained_run: TrainedRun) -> None:
    """The same seed gives the same text; greedy gives what the engine gives alone; limits hold."""
    engine = mlx_codegen.load(trained_run.folder.path)
    alone = engine.generate("Create a backup script", temperature=0, max_tokens=40)
    engine.use_draft(mlx_codegen.load(trained_run.folder.checkpoint("language", "best")))
    assert engine.generate("Create a backup script", temperature=0, max_tokens=40) == alone
    first, again = (engine.generate("Create a backup script", seed=3, max_tokens=40) for _ in range(2))
    assert first == again
    assert len(list(engine.token_ids([0, 5], mlx_codegen.generation.engine.SamplingConfig(max_tokens=7, seed=1)))) <= 7


def test_a_draft_with_another_tokenizer_is_refused(trained_run: TrainedRun) -> None:
    """Its ids would mean other text."""
    engine = mlx_codegen.load(trained_run.folder.path)
    tokenizer = tiny_tokenizer(trained_run.folder)
    other = Engine(random_model(1, vocab_size=tokenizer.vocab_size), tokenizer)
    other.tokenizer = type(tokenizer)(tokenizer.model_bytes)
    engine.use_draft(other)  # the same pieces
    different = random_tokenizer(tokenizer.vocab_size)
    with pytest.raises(UserError, match="has another tokenizer"):
        engine.use_draft(Engine(random_model(1, vocab_size=different.vocab_size), different))


def random_tokenizer(vocab_size: int) -> "mlx_codegen.tokenizer.Tokenizer":
    from mlx_codegen.config import TokenizerConfig
    from mlx_codegen.tokenizer import train_tokenizer

    texts = [f"other words {number} entirely, {number * 7} of them\n" for number in range(400)]
    return train_tokenizer(iter(texts), TokenizerConfig(), vocab_size)
