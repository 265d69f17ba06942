"""Our model in the Hugging Face layout of its family, which transformers, mlx-lm and llama.cpp read, and back.

Here: the content of `config.json`, and the weights under their names there. Formats want biases that our models do not
have by default; zeros change nothing.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from mlx_codegen.config import Family, ModelConfig
from mlx_codegen.model import NORM_EPSILON

Weights = dict[str, mx.array]

MODEL_TYPES: tuple[Family, ...] = ("gpt2", "gpt_neox", "llama")
"""`model_type` in their `config.json`: the families have the same names there."""

# Ours: theirs, outside and inside the blocks.
_NAMES: dict[Family, dict[str, str]] = {
    "gpt2": {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"},
    "gpt_neox": {
        "token_embedding": "gpt_neox.embed_in",
        "output_proj": "embed_out",
        "final_norm": "gpt_neox.final_layer_norm",
    },
    "llama": {"token_embedding": "model.embed_tokens", "final_norm": "model.norm"},
}
_BLOCK_PREFIX: dict[Family, str] = {"gpt2": "h", "gpt_neox": "gpt_neox.layers", "llama": "model.layers"}
_BLOCK_NAMES: dict[Family, dict[str, str]] = {
    "gpt2": {
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attention.qkv_proj": "attn.c_attn",
        "attention.out_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    "gpt_neox": {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention.qkv_proj": "attention.query_key_value",
        "attention.out_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    "llama": {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention.qkv_proj": "self_attn.{}_proj",  # three matrices instead of one: q, k, v
        "attention.out_proj": "self_attn.o_proj",
        "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.up_proj",
        "mlp.down_proj": "mlp.down_proj",
    },
}


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says about a model. Raises nothing: each of our families is one of theirs."""
    return {"gpt2": _gpt2_config, "gpt_neox": _gpt_neox_config, "llama": _llama_config}[config.family](config)


def hugging_face_weights(weights: Weights, config: ModelConfig) -> Weights:
    """Our weights (names as `Transformer.parameters()` flattened) under the names and in the shapes of their family."""
    result: Weights = {}
    for ours, theirs in _layers(config):
        result |= _to_theirs(f"{theirs}.weight", weights[f"{ours}.weight"], config)
        if _has_bias_there(ours, config):
            bias = weights.get(f"{ours}.bias")
            if bias is None:
                bias = mx.zeros(weights[f"{ours}.weight"].shape[:1], weights[f"{ours}.weight"].dtype)
            result |= _to_theirs(f"{theirs}.bias", bias, config)
    return result


def our_weights(theirs_by_name: Weights, config: ModelConfig) -> Weights:
    """The inverse of `hugging_face_weights`. Raises KeyError with the name of an array that is not there."""
    result: Weights = {}
    for ours, theirs in _layers(config):
        result[f"{ours}.weight"] = _to_ours(f"{theirs}.weight", theirs_by_name, config)
        if config.bias and _has_bias_there(ours, config):
            result[f"{ours}.bias"] = _to_ours(f"{theirs}.bias", theirs_by_name, config)
    return result


def names_without_mlx_lm(weights: Weights, config: ModelConfig) -> Weights:
    """Weights as mlx-lm saves them, under the names and in the shapes of the Hugging Face layout.

    mlx-lm calls GPT-NeoX's blocks `h`, puts `model.` before the names, and keeps GPT-2's matrices as (out, in).
    """
    if config.family == "llama":
        return weights
    result: Weights = {}
    for name, value in weights.items():
        name = name.removeprefix("model.")
        if config.family == "gpt2":
            result[name] = value.T if _is_conv1d(name, config) and value.ndim == 2 else value
        else:
            name = name.replace("h.", "layers.", 1) if name.startswith("h.") else name
            result[name if name.startswith("embed_out.") else f"gpt_neox.{name}"] = value
    return result


def _layers(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Every layer with weights: our name, theirs."""
    yield from _NAMES[config.family].items()
    for index in range(config.n_layers):
        for ours, theirs in _BLOCK_NAMES[config.family].items():
            yield f"blocks.{index}.{ours}", f"{_BLOCK_PREFIX[config.family]}.{index}.{theirs}"


def _has_bias_there(ours: str, config: ModelConfig) -> bool:
    """GPT-2 and GPT-NeoX have biases everywhere but in tables; Llama's are an option, and its norms have none."""
    if config.family == "llama":
        return config.bias and ours.endswith("_proj")
    return not ours.endswith(("_embedding", "output_proj"))


def _to_theirs(name: str, value: mx.array, config: ModelConfig) -> Weights:
    if "{}" in name:
        return {name.format(letter): part for letter, part in zip("qkv", mx.split(value, 3), strict=True)}
    if _is_conv1d(name, config) and value.ndim == 2:
        value = mx.contiguous(value.T)
    elif "query_key_value" in name:
        value = value.reshape(3, config.n_heads, config.head_dim, -1).swapaxes(0, 1).reshape(value.shape)
    return {name: value}


def _to_ours(name: str, theirs: Weights, config: ModelConfig) -> mx.array:
    if "{}" in name:
        return mx.concatenate([theirs[name.format(letter)] for letter in "qkv"])
    value = theirs[name]
    if _is_conv1d(name, config) and value.ndim == 2:
        return mx.contiguous(value.T)
    if "query_key_value" in name:  # rows from (head 0's queries, keys, values; head 1's; ...) to all queries, keys, values
        return value.reshape(config.n_heads, 3, config.head_dim, -1).swapaxes(0, 1).reshape(value.shape)
    return value


def _is_conv1d(name: str, config: ModelConfig) -> bool:
    """GPT-2 keeps the matrices in its blocks transposed (Conv1D: in x out)."""
    return config.family == "gpt2" and name.startswith("h.")


def _gpt2_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.hidden_dim,
        "activation_function": "gelu_new",  # GELU in its tanh form
        "layer_norm_epsilon": NORM_EPSILON,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _gpt_neox_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.hidden_dim,
        "hidden_act": "gelu_fast",  # GELU in its tanh form, as GPT-NeoX-20B names it
        "layer_norm_eps": NORM_EPSILON,
        "rotary_pct": 1.0,
        "rotary_emb_base": config.rope_theta,
        "use_parallel_residual": True,
        "attention_bias": True,
        "hidden_dropout": config.dropout,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": config.rope_theta,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
