"""The transformer computes what it says: the reference models' logits, causality, cache, initialisation, dropout."""

import importlib
import math
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_codegen.config import Family, ModelConfig
from mlx_codegen.hub import hugging_face_config, hugging_face_weights
from mlx_codegen.model import Transformer, count_parameters
from mlx_codegen.training.step import token_losses, total_loss

FAMILIES = get_args(Family)
SHAPES: list[dict[str, Any]] = [
    {"n_layers": 1, "d_model": 16, "n_heads": 1, "vocab_size": 31, "context_length": 8},
    {"n_layers": 3, "d_model": 48, "n_heads": 6, "vocab_size": 100, "context_length": 40},
    {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": 257, "context_length": 16},
]


def make_config(family: str, **changes: Any) -> ModelConfig:
    values = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 61, "context_length": 24}
    return ModelConfig.model_validate({"family": family, **values, **changes})


def make_model(family: str, gradient_checkpointing: bool = False, **changes: Any) -> Transformer:
    """A model in evaluation mode whose weights are all large enough to matter, norms and biases too."""
    mx.random.seed(7)
    model = Transformer(make_config(family, **changes), gradient_checkpointing)
    model.update(tree_map(lambda p: p + 0.15 * mx.random.normal(p.shape), model.parameters()))
    return model.eval()


def random_tokens(config: ModelConfig, batch: int = 2, length: int | None = None) -> mx.array:
    return mx.random.randint(0, config.vocab_size, (batch, length or config.context_length), key=mx.random.key(3))


def largest_difference(a: mx.array, b: mx.array) -> float:
    return float(mx.max(mx.abs(a - b)).item())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{n_layers}x{d_model}x{n_heads}".format(**shape))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_mlx_lm(family: str, shape: dict[str, Any], bias: bool) -> None:
    """With the same weights, converted by hub.py, our model is the family's model and not something like it."""
    model = make_model(family, **shape, bias=bias)
    config = model.config
    reference_module = importlib.import_module(f"mlx_lm.models.{family}")
    reference = reference_module.Model(reference_module.ModelArgs.from_dict(hugging_face_config(config)))
    theirs = reference.sanitize(hugging_face_weights(dict(tree_flatten(model.parameters())), config))
    reference.load_weights(list(theirs.items()), strict=True)
    reference.eval()
    tokens = random_tokens(config)
    logits = model(tokens)
    assert logits.shape == (2, config.context_length, config.vocab_size)
    assert mx.std(logits).item() > 0.1, "logits too alike to compare anything"
    assert largest_difference(logits, reference(tokens)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_config_as_we_mean_it(family: str) -> None:
    """A key that transformers does not know would be kept and ignored: the values must arrive under its own names."""
    from transformers import AutoConfig

    config = make_config(family, d_ff=96, bias=True, rope_theta=5000.0)
    values = hugging_face_config(config)
    theirs = AutoConfig.for_model(**values)
    assert theirs.num_hidden_layers == 2
    assert theirs.hidden_size == 32
    assert theirs.num_attention_heads == 4
    assert theirs.vocab_size == 61
    assert theirs.max_position_embeddings == 24
    assert theirs.tie_word_embeddings == (family != "gpt_neox")
    assert (theirs.n_inner if family == "gpt2" else theirs.intermediate_size) == 96
    if family != "gpt2":
        assert theirs.rope_parameters["rope_theta"] == 5000.0
        assert theirs.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_do_not_depend_on_later_tokens(family: str) -> None:
    """No leak from the future: with one, training loss would fall and generation would be noise."""
    model = make_model(family)
    tokens = random_tokens(model.config)
    before = model(tokens)
    for position in (1, 10, 23):
        changed = mx.array(tokens)
        changed[:, position] = (changed[:, position] + 1) % model.config.vocab_size
        after = model(changed)
        assert largest_difference(before[:, :position], after[:, :position]) == 0
        assert largest_difference(before[:, position], after[:, position]) > 1e-3
        assert position == 23 or largest_difference(before[:, -1], after[:, -1]) > 1e-6, "earlier tokens are not read"


@pytest.mark.parametrize("chunks", [[1] * 24, [24], [5, 1, 7, 1, 1, 9], [16, 8]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_equals_the_whole_forward(family: str, chunks: list[int]) -> None:
    """One token at a time, or a prompt in pieces: position and mask go on where the cache stands."""
    model = make_model(family)
    tokens = random_tokens(model.config)
    cache, position, pieces = model.make_cache(), 0, []
    for length in chunks:
        pieces.append(model(tokens[:, position : position + length], cache))
        position += length
        assert all(layer.offset == position for layer in cache)
    assert largest_difference(mx.concatenate(pieces, axis=1), model(tokens)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_have_gpt2s_statistics(family: str) -> None:
    """Matrices N(0, 0.02²); projections onto the residual stream smaller by √(2 layers); norms one, biases zero."""
    mx.random.seed(0)
    config = make_config(family, d_model=128, n_layers=8, vocab_size=512, bias=True)
    seen = set()
    for name, value in tree_flatten(Transformer(config).parameters()):
        if value.ndim == 2:
            residual = name.endswith(("attention.out_proj.weight", "mlp.down_proj.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert mx.std(value).item() == pytest.approx(expected, rel=0.05), name
            assert abs(mx.mean(value).item()) < 0.1 * expected, name
            seen.add(residual)
        else:
            assert mx.array_equal(value, mx.zeros_like(value) if name.endswith("bias") else mx.ones_like(value)), name
    assert seen == {True, False}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_is_nearly_undecided(family: str) -> None:
    """The first loss is about ln V; much more would mean a wrong scale somewhere."""
    mx.random.seed(0)
    model = Transformer(make_config(family))
    assert token_losses(model, random_tokens(model.config)).mean().item() == pytest.approx(math.log(61), rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_works_in_training_only(family: str) -> None:
    """Training draws new masks each time; evaluation gives the same as a model without dropout."""
    model = make_model(family, dropout=0.3)
    tokens = random_tokens(model.config)
    plain = make_model(family, dropout=0.0)(tokens)
    assert largest_difference(model(tokens), plain) == 0
    model.train()
    first, second = model(tokens), model(tokens)
    assert largest_difference(first, second) > 1e-3
    assert largest_difference(first, plain) > 1e-3
    assert largest_difference(model.eval()(tokens), plain) == 0


@pytest.mark.parametrize("place", ["embeddings", "attention", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_reaches_embeddings_attention_and_mlp(family: str, place: str) -> None:
    """The setting says three places: with the other two switched off, each makes two passes differ by itself."""
    model = make_model(family, dropout=0.5, n_layers=1).train()
    block = model.blocks[0]
    if place == "embeddings":
        block.dropout = nn.Dropout(0.0)
    else:
        model.dropout = nn.Dropout(0.0)
        silenced = block.mlp.down_proj if place == "attention" else block.attention.out_proj
        silenced.weight = mx.zeros_like(silenced.weight)
    tokens = random_tokens(model.config)
    assert largest_difference(model(tokens), model(tokens)) > 1e-3


def loss_and_gradients(model: Transformer, seed: int = 11) -> tuple[mx.array, dict[str, mx.array]]:
    mx.random.seed(seed)
    tokens = random_tokens(model.config)
    loss, gradients = nn.value_and_grad(model, lambda t: total_loss(model, t) / t.size)(tokens)
    mx.eval(loss, gradients, mx.random.state)
    return loss, dict(tree_flatten(gradients))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(family: str, dropout: float) -> None:
    """Recomputing activations changes memory and time, nothing else: the dropout masks are those of the forward pass,
    and the random state after the step is the same."""
    plain_loss, plain = loss_and_gradients(make_model(family, dropout=dropout).train())
    plain_key = mx.array(mx.random.state[0])
    loss, gradients = loss_and_gradients(make_model(family, gradient_checkpointing=True, dropout=dropout).train())
    assert mx.array_equal(mx.random.state[0], plain_key)
    assert largest_difference(loss, plain_loss) < 1e-6
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert largest_difference(gradient, plain[name]) < 1e-5, name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_belong_to_the_dropout_masks_of_the_loss(gradient_checkpointing: bool) -> None:
    """A block that is computed again must drop the same activations again; with new masks the gradient is another
    function's. The slope of the loss along the gradient, measured, is the gradient's length."""
    model = make_model("gpt2", gradient_checkpointing, dropout=0.3).train()
    _, gradients = loss_and_gradients(model)
    length = math.sqrt(sum(mx.sum(g * g).item() for g in gradients.values()))
    start = dict(tree_flatten(model.parameters()))
    losses = []
    for distance in (1e-2, -1e-2):
        model.load_weights([(name, value + distance / length * gradients[name]) for name, value in start.items()])
        losses.append(loss_and_gradients(model)[0].item())
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(length, rel=0.01)


def test_gradient_checkpointing_draws_new_dropout_masks_each_step() -> None:
    """Putting the random state back for a recomputed block must not freeze it."""
    model = make_model("gpt2", gradient_checkpointing=True, dropout=0.3).train()
    step = nn.value_and_grad(model, lambda t: total_loss(model, t) / t.size)
    tokens = random_tokens(model.config)
    losses = {step(tokens)[0].item() for _ in range(3)}
    assert len(losses) == 3


def test_gradient_checkpointing_lowers_peak_memory() -> None:
    """Activations inside the blocks are not kept: with many layers the peak is less than half."""

    def peak_bytes(gradient_checkpointing: bool) -> int:
        model = make_model("gpt2", gradient_checkpointing, n_layers=8, context_length=64).train()
        tokens = random_tokens(model.config, batch=4)
        mx.eval(model.parameters(), tokens)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, lambda t: total_loss(model, t) / t.size)(tokens))
        return int(mx.get_peak_memory() - before)

    assert peak_bytes(True) < 0.5 * peak_bytes(False)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_compute_type_stays(family: str, dtype: mx.Dtype) -> None:
    """One float32 constant in the wrong place would make a half-precision model compute in float32 from there on."""
    model = make_model(family)
    tokens = random_tokens(model.config, length=8)
    exact = model(tokens)
    model.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    cache = model.make_cache()
    logits = model(tokens, cache)
    assert logits.dtype == dtype
    assert cache[0].keys is not None
    assert cache[0].keys.dtype == dtype
    assert largest_difference(logits.astype(mx.float32), exact) < 0.05 * mx.max(mx.abs(exact)).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_equals_the_formula(family: str, bias: bool) -> None:
    """Counted by hand from the drawing of each family, tied tables once."""
    V, T, C, F, L = 61, 24, 32, 128, 2
    if family == "llama":
        F = 96  # 8/3 · 32 rounded up to a multiple of 32
        matrices, biases, norm = 4 * C * C + 3 * C * F, 4 * C + 2 * F + C, C
    else:
        matrices, biases, norm = 4 * C * C + 2 * C * F, 4 * C + F + C, 2 * C if bias else C
    expected = V * C + L * (matrices + 2 * norm + (biases if bias else 0)) + norm
    expected += {"gpt2": T * C, "gpt_neox": V * C, "llama": 0}[family]
    assert count_parameters(Transformer(make_config(family, bias=bias))) == expected


def test_no_rotation_for_learned_positions_and_none_learned_for_rotary() -> None:
    """Two kinds of positions at once, or none, would still train: order must matter in each family."""
    for family in FAMILIES:
        model = make_model(family)
        names = dict(tree_flatten(model.parameters()))
        assert ("position_embedding.weight" in names) == (family == "gpt2")
        tokens = np.array([[5, 9, 9, 9], [9, 5, 9, 9]])
        last = model(mx.array(tokens))[:, -1]
        assert largest_difference(last[0], last[1]) > 1e-4, family
