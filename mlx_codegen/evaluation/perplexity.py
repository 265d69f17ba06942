"""How well a model foretells text that it never saw: loss, perplexity and bits per byte, source by source.

Loss is the mean surprise in nats per token, perplexity its exponential: between how many equally likely tokens the model
would hesitate. Both depend on how the tokenizer cuts the text. Bits per byte, the same surprise in bits over the bytes of
the text, does not, so models with different tokenizers can be compared by it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_codegen.config import PHASES
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.held_out import Documents, cut, encoded, validation_texts
from mlx_codegen.evaluation.machine_scripts import find_scripts, read_scripts, system_folders
from mlx_codegen.evaluation.sliding_window import document_losses
from mlx_codegen.evaluation.training_texts import training_texts
from mlx_codegen.tokenizer import Tokenizer

FEW_DOCUMENTS = 30
"""The bootstrap over fewer documents gives a rough interval."""


def measure_perplexity(context: Context) -> PartResult:
    """Scores the validation text of both phases, and this machine's own shell scripts."""
    model, tokenizer = context.engine.model, context.engine.tokenizer
    result = PartResult("perplexity", "Unseen text: surprise per token and per byte")
    texts: dict[str, Documents] = {}
    for phase in PHASES:
        texts |= {f"{phase}, {name}": found for name, found in validation_texts(context, phase, result.notes).items()}
    texts["this machine's scripts"] = _machine_scripts(context, result.notes)
    for name, documents in texts.items():
        if documents:
            progress = partial(context.on_progress, f"scoring {name}")
            losses = document_losses(model, documents, tokenizer.end_of_text_id, progress)
            figures = text_figures(documents, losses, tokenizer)
            result.figures |= {f"{name}: {figure}": value for figure, value in figures.items()}
    limit = model.config.context_length
    result.notes.append(f"windows of {limit} tokens, {limit // 2} apart; each token is scored once, intervals are over documents")
    if few := [f"{name} {len(found)}" for name, found in texts.items() if 0 < len(found) < FEW_DOCUMENTS]:
        result.notes.append(f"few documents, so rough intervals: {', '.join(few)}")
    return result


def text_figures(documents: Documents, losses: Sequence[NDArray[np.float64]], tokenizer: Tokenizer) -> dict[str, Figure]:
    """Figures of one text from the loss of every token, `(N,)` nats for a document of N tokens."""
    lengths = tokenizer.byte_lengths()
    by_token: dict[str, list[float]] = {}
    by_byte: dict[str, list[float]] = {}
    for number, (ids, nats) in enumerate(zip(documents, losses, strict=True)):
        key, size = prompt_key(str(number), tokenizer.decode(ids)), sum(lengths[index] for index in ids)
        by_token[key] = nats.tolist()
        # Every byte carries its share of the document's bits: the mean over bytes is then all bits over all bytes
        by_byte[key] = [float(nats.sum()) / math.log(2) / size] * size
    loss = mean_of(by_token, "nats/token")
    return {"loss": loss, "perplexity": _exponential(loss), "bits per byte": mean_of(by_byte, "bits/byte")}


def _exponential(loss: Figure) -> Figure:
    """Perplexity from loss; the interval's ends go along, since the exponential never turns the order around."""
    return replace(loss, value=math.exp(loss.value), low=math.exp(loss.low), high=math.exp(loss.high), unit="", prompts={})


def _machine_scripts(context: Context, notes: list[str]) -> Documents:
    """A sample of the scripts on this machine; those that the model trained on are left out."""
    tokenizer, trained_on = context.engine.tokenizer, training_texts(context.engine)
    unreadable: list[Path] = []
    known: list[str] = []

    def fresh(texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            if trained_on.has_document(text):
                known.append(text)
            else:
                yield text

    files = find_scripts(system_folders(), context.settings.seed)
    documents = cut(encoded(fresh(read_scripts(files, unreadable)), tokenizer), tokenizer)
    notes.append(f"this machine's scripts: {len(documents)} drawn from {len(files):,} with a bash or sh line at the top")
    if unreadable:
        notes.append(f"{len(unreadable)} scripts of this machine are no UTF-8 text, or not ours to read")
    if known:
        notes.append(f"{len(known)} scripts of this machine are left out: the model was trained on them")
    if not trained_on:
        notes.append(f"scripts of this machine may have been trained on: {trained_on.note}")
    return documents
