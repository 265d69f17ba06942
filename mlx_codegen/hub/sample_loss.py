"""Bits per byte on a small sample of bundled text: what a change of the weights costs, in one number."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice

import mlx.core as mx
import mlx.nn as nn

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.sources import read_split_documents
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer

SAMPLE_DOCUMENTS = 32
SAMPLE_SEED = 20_000
"""Not a seed that trains: the bundled English is written anew by each seed, and has no split of its own."""


@cache
def sample_documents(phase: str) -> tuple[str, ...]:
    """Bundled text of a phase's kind: bash from tasks that are held out, or English."""
    if phase == "language":
        source = SourceConfig(name="english", bundled="english", max_documents=SAMPLE_DOCUMENTS)
        return tuple(document.text for document in read_split_documents(source, SAMPLE_SEED))
    documents = read_split_documents(SourceConfig(name="bash", bundled="bash"), SAMPLE_SEED)
    return tuple(islice((document.text for document in documents if document.split == "validation"), SAMPLE_DOCUMENTS))


def bits_per_byte(model: Transformer, tokenizer: Tokenizer, documents: Sequence[str]) -> float:
    """Total loss / (ln 2 · UTF-8 bytes) over the documents' tokens, each document cut at the context's length."""
    lengths = tokenizer.byte_lengths()
    end, limit = tokenizer.end_of_text_id, model.config.context_length
    total_loss, total_bytes = 0.0, 0
    model.eval()
    for text in documents:
        ids = [end, *tokenizer.encode(text), end][: limit + 1]
        logits = model(mx.array([ids[:-1]]))
        total_loss += nn.losses.cross_entropy(logits, mx.array([ids[1:]]), reduction="sum").item()
        total_bytes += sum(lengths[index] for index in ids[1:])
    return total_loss / (math.log(2) * max(total_bytes, 1))
