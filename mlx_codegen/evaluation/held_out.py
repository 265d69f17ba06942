"""Texts that a model never trained on, cut to a size that a CPU can score in a minute.

A run keeps its validation documents as token files, source by source. An exported model has left them behind: then it is
the bundled English and the bundled bash tasks, those documents that the usual split holds out. The limits count
bytes and not tokens, so that models with different tokenizers are measured on the same text.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import PHASES, PhaseConfig, PhaseName, repository_folder
from mlx_codegen.data.batches import TokenFile, open_token_files
from mlx_codegen.data.prepare import clean, document_hash, read_manifest, split_of
from mlx_codegen.data.stories import story_documents
from mlx_codegen.data.tasks import Task, renderings
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.context import Context
from mlx_codegen.generation.engine import Engine
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.run_folder import RunFolder

SOURCE_BYTES = 40_000
"""Text of one source, about 13,000 tokens of a vocabulary of 8,000."""
DOCUMENT_BYTES = 4_000
"""Of a longer document the beginning: one book must not be the whole figure."""
USUAL_FRACTION: float = PhaseConfig.model_fields["validation_fraction"].default
BUNDLED_STORIES = 12_000
BUNDLED_ROUNDS = 40
"""Renderings of each task in search of held-out ones."""

Documents = list[list[int]]
"""Token ids of each document, closed by end-of-text where it is whole."""


def run_of(engine: Engine) -> RunFolder | None:
    """The run that a checkpoint lies in; None for an exported folder and for a file that was taken out of its run."""
    file = Path(engine.origin).absolute()
    folder = RunFolder(file.parent.parent)
    return folder if file.is_file() and file.parent.name in PHASES and folder.config_file.exists() else None


def validation_texts(context: Context, phase: PhaseName, notes: list[str]) -> dict[str, Documents]:
    """Held-out documents of a phase by source; what a reader must know about them is added to `notes`."""
    tokenizer, run = context.engine.tokenizer, run_of(context.engine)
    if run is not None and (run.data(phase) / "manifest.json").exists():
        try:
            texts = _prepared(run, phase, tokenizer, context.settings.seed)
            if _trained_on_others(run, phase):
                notes.append(f"the {phase} data was prepared anew after training: some of its validation text may have been seen")
            return texts
        except UserError as error:
            notes.append(f"the run's {phase} data is left out: {error}")
    source = "bundled English" if phase == "language" else "bundled bash"
    notes.append(f"no validation text of the {phase} phase beside the model: {source}, held out by the usual split, instead")
    return {source: _bundled(context.tasks, phase, tokenizer)}


def cut(documents: Iterable[Sequence[int]], tokenizer: Tokenizer) -> Documents:
    """The first documents that make up `SOURCE_BYTES`, each to its `DOCUMENT_BYTES` at most."""
    lengths = np.array(tokenizer.byte_lengths())
    kept: Documents = []
    room = SOURCE_BYTES
    for ids in documents:
        ends = np.cumsum(lengths[np.asarray(ids, dtype=int)])
        fits = int(np.searchsorted(ends, DOCUMENT_BYTES, side="right"))
        if fits == 0 or ends[fits - 1] == 0:
            continue  # nothing to read
        kept.append(list(ids[:fits]))
        room -= int(ends[fits - 1])
        if room <= 0:
            break
    return kept


def encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Texts as training saw them: each closed by end-of-text."""
    return ([*tokenizer.encode(text), tokenizer.end_of_text_id] for text in texts)


def _prepared(run: RunFolder, phase: PhaseName, tokenizer: Tokenizer, seed: int) -> dict[str, Documents]:
    files = open_token_files(run.data(phase), "validation", {}, tokenizer.hash)
    return {file.name: cut(_shuffled(file, seed), tokenizer) for file in files if len(file.document_ends)}


def _shuffled(file: TokenFile, seed: int) -> Iterator[list[int]]:
    """Documents in an order that depends on the seed and their number alone: neighbours in a file resemble each other."""
    ends = file.document_ends.astype(np.int64)
    for number in np.random.default_rng(seed).permutation(len(ends)):
        yield file.tokens[ends[number - 1] if number else 0 : ends[number]].tolist()


def _trained_on_others(run: RunFolder, phase: PhaseName) -> bool:
    """Whether the phase was trained on other token files than those that lie there now, split anew."""
    best = run.checkpoint(phase, "best")
    try:
        trained = load_checkpoint(best).progress.data_fingerprint if best.exists() else ""
    except UserError:
        return False  # then nobody trained on from it
    return bool(trained) and trained != read_manifest(run.data(phase))["fingerprint"]


def _bundled(tasks: list[Task], phase: PhaseName, tokenizer: Tokenizer) -> Documents:
    if phase == "code":
        drawn = renderings(tasks, BUNDLED_ROUNDS, seed=0)
        return cut(encoded((r.document for r in drawn if r.part == "validation"), tokenizer), tokenizer)
    stories = map(clean, story_documents(repository_folder("data") / "english", BUNDLED_STORIES, seed=0))
    held_out = (text for text in stories if split_of(document_hash(text), USUAL_FRACTION) == "validation")
    return cut(encoded(held_out, tokenizer), tokenizer)
