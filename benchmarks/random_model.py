"""Untrained models to measure: speed does not depend on what the weights are."""

import json
from itertools import islice
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_codegen import backend
from mlx_codegen.checkpoint import Progress, save_checkpoint
from mlx_codegen.config import RunConfig, SourceConfig
from mlx_codegen.data.sources import read_documents
from mlx_codegen.errors import UserError
from mlx_codegen.hub import hugging_face_config, hugging_face_weights
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer

PIECES_PER_DOCUMENT = 5
"""So few of its bundled documents does the tokenizer need of each language to find as many pieces as are asked for."""


def write_random_model(config: RunConfig, folder: Path) -> tuple[Path, Path]:
    """One model twice: as our checkpoint, and as a folder that mlx-lm loads (without a tokenizer).

    End-of-text has zeros for its row of the output table, so its score is 0, far below that of the best 50 tokens:
    both sides write as many tokens as they are asked for.
    Raises UserError where the bundled text does not carry so many pieces.
    """
    tokenizer = bundled_tokenizer(config)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"the bundled text carries {tokenizer.vocab_size} pieces of the {config.model.vocab_size} that the config asks for; "
            "measure a config with another vocab_size"
        )
    model = Transformer(config.model)
    table = model.output_proj if config.model.family == "gpt_neox" else model.token_embedding
    table.weight[tokenizer.end_of_text_id] = 0
    checkpoint = folder / "best.safetensors"
    save_checkpoint(checkpoint, model, tokenizer, config, Progress("code"))
    peer = folder / "hugging_face"
    peer.mkdir()
    (peer / "config.json").write_text(json.dumps(hugging_face_config(config.model)), encoding="utf-8")
    weights = hugging_face_weights(dict(tree_flatten(model.parameters())), config.model)
    dtype = getattr(mx, backend.resolve_precision("auto"))
    mx.save_safetensors(str(peer / "model.safetensors"), {name: value.astype(dtype) for name, value in weights.items()})
    return checkpoint, peer


def weight_bytes_per_token(config: RunConfig) -> int:
    """Bytes of weights that one decoding step must read: all but the tables from which it takes one row."""
    tables = ["position_embedding"] + (["token_embedding"] if config.model.family == "gpt_neox" else [])
    weights = tree_flatten(Transformer(config.model).parameters())
    width = getattr(mx, backend.resolve_precision("auto")).size
    return sum(value.size * width for name, value in weights if not name.startswith(tuple(tables)))


def bundled_tokenizer(config: RunConfig) -> Tokenizer:
    """A tokenizer trained on as much of the bundled text as it needs; it may have fewer pieces than the config asks for."""
    sources = [SourceConfig(name=name, bundled=name) for name in ("english", "bash")]
    count = config.model.vocab_size // PIECES_PER_DOCUMENT
    texts = [text for source in sources for text in islice(read_documents(source), count)]
    return train_tokenizer(texts, config.tokenizer, config.model.vocab_size)
