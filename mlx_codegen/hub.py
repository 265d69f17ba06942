"""Our model in the Hugging Face layout of its family, which transformers, mlx-lm and llama.cpp read.

Here: the content of `config.json`, and the weights under their names there. Formats want biases that our models do not
have by default; zeros change nothing.
"""

from typing import Any

import mlx.core as mx

from mlx_codegen.config import ModelConfig
from mlx_codegen.model import NORM_EPSILON

Weights = dict[str, mx.array]


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says about a model. Raises nothing: each of our families is one of theirs."""
    return {"gpt2": _gpt2_config, "gpt_neox": _gpt_neox_config, "llama": _llama_config}[config.family](config)


def hugging_face_weights(weights: Weights, config: ModelConfig) -> Weights:
    """Our weights (names as `Transformer.parameters()` flattened) under the names and in the shapes of their family."""
    convert = {"gpt2": _gpt2_weights, "gpt_neox": _gpt_neox_weights, "llama": _llama_weights}[config.family]
    return convert(weights, config)


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


def _gpt2_weights(weights: Weights, config: ModelConfig) -> Weights:
    """GPT-2 keeps its matrices transposed (Conv1D: in x out), and calls queries, keys and values `c_attn`."""
    result = {"wte.weight": weights["token_embedding.weight"], "wpe.weight": weights["position_embedding.weight"]}
    result |= _with_bias(weights, "final_norm", "ln_f")
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"h.{layer}"
        result |= _with_bias(weights, f"{ours}.attention_norm", f"{theirs}.ln_1")
        result |= _with_bias(weights, f"{ours}.mlp_norm", f"{theirs}.ln_2")
        result |= _conv1d(_with_bias(weights, f"{ours}.attention.qkv_proj", f"{theirs}.attn.c_attn"))
        result |= _conv1d(_with_bias(weights, f"{ours}.attention.out_proj", f"{theirs}.attn.c_proj"))
        result |= _conv1d(_with_bias(weights, f"{ours}.mlp.up_proj", f"{theirs}.mlp.c_fc"))
        result |= _conv1d(_with_bias(weights, f"{ours}.mlp.down_proj", f"{theirs}.mlp.c_proj"))
    return result


def _gpt_neox_weights(weights: Weights, config: ModelConfig) -> Weights:
    result = {
        "gpt_neox.embed_in.weight": weights["token_embedding.weight"],
        "embed_out.weight": weights["output_proj.weight"],
    }
    result |= _with_bias(weights, "final_norm", "gpt_neox.final_layer_norm")
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        result |= _with_bias(weights, f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        result |= _with_bias(weights, f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm")
        fused = _with_bias(weights, f"{ours}.attention.qkv_proj", f"{theirs}.attention.query_key_value")
        result |= {name: _interleave_heads(value, config) for name, value in fused.items()}
        result |= _with_bias(weights, f"{ours}.attention.out_proj", f"{theirs}.attention.dense")
        result |= _with_bias(weights, f"{ours}.mlp.up_proj", f"{theirs}.mlp.dense_h_to_4h")
        result |= _with_bias(weights, f"{ours}.mlp.down_proj", f"{theirs}.mlp.dense_4h_to_h")
    return result


def _llama_weights(weights: Weights, config: ModelConfig) -> Weights:
    result = {"model.embed_tokens.weight": weights["token_embedding.weight"], "model.norm.weight": weights["final_norm.weight"]}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        result[f"{theirs}.input_layernorm.weight"] = weights[f"{ours}.attention_norm.weight"]
        result[f"{theirs}.post_attention_layernorm.weight"] = weights[f"{ours}.mlp_norm.weight"]
        for kind in ("weight", "bias") if config.bias else ("weight",):
            queries, keys, values = mx.split(weights[f"{ours}.attention.qkv_proj.{kind}"], 3)
            result[f"{theirs}.self_attn.q_proj.{kind}"] = queries
            result[f"{theirs}.self_attn.k_proj.{kind}"] = keys
            result[f"{theirs}.self_attn.v_proj.{kind}"] = values
            result[f"{theirs}.self_attn.o_proj.{kind}"] = weights[f"{ours}.attention.out_proj.{kind}"]
            for name in ("gate_proj", "up_proj", "down_proj"):
                result[f"{theirs}.mlp.{name}.{kind}"] = weights[f"{ours}.mlp.{name}.{kind}"]
    return result


def _with_bias(weights: Weights, ours: str, theirs: str) -> Weights:
    """Weight and bias of one layer under its other name; zeros for a bias that we do not have."""
    weight = weights[f"{ours}.weight"]
    bias = weights.get(f"{ours}.bias")
    return {f"{theirs}.weight": weight, f"{theirs}.bias": mx.zeros(weight.shape[:1], weight.dtype) if bias is None else bias}


def _conv1d(layer: Weights) -> Weights:
    return {name: mx.contiguous(value.T) if value.ndim == 2 else value for name, value in layer.items()}


def _interleave_heads(fused: mx.array, config: ModelConfig) -> mx.array:
    """Rows from (queries of all heads, keys of all, values of all) to (queries, keys, values of head 0, of head 1, ...)."""
    rows = fused.reshape(3, config.n_heads, config.head_dim, -1).swapaxes(0, 1)
    return rows.reshape(fused.shape)
