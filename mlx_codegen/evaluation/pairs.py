"""Held-out pairs of a request and its one-line command: from the sources of a model's run, or from files.

A pair is held out by the hash of its text, as in training. The same request can stand in training with another answer;
such pairs are left out and counted.
"""

import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.prepare import clean, document_hash, split_of
from mlx_codegen.data.sources import read_documents
from mlx_codegen.data.tasks import Rendering
from mlx_codegen.data.text_hashes import normal_prompt, split_document, text_hash
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.held_out import USUAL_FRACTION
from mlx_codegen.evaluation.training_texts import TrainingTexts
from mlx_codegen.hub.folder import open_checkpoint

PAIRS = 200
"""At most so many of a source are measured."""
MOST_DOCUMENTS = 500_000
"""Of a larger source, the beginning is read."""
LOOKED_AT = 100
"""A source without a pair among its first documents has none."""
BUNDLED = "bundled"


def pair_sets(context: Context, notes: list[str]) -> dict[str, list[Rendering]]:
    """Pairs to measure by source; what a reader must know about them is added to `notes`.

    The files of the settings, else the sources of the model's code phase; the bundled one-line tasks where neither has pairs.
    """
    phase = open_checkpoint(Path(context.engine.origin)).config.phases.code
    fraction = USUAL_FRACTION if phase is None else phase.validation_fraction
    sources = file_sources(context.settings.pairs) or ([] if phase is None else list(phase.sources))
    sets = {}
    for source in sources:
        if source.bundled is None and not source.script_documents:
            try:
                sets[source.name] = _drawn(source, fraction, context, notes)
            except UserError as error:
                notes.append(f"{source.name} is left out: {error}")
    sets = {name: pairs for name, pairs in sets.items() if pairs}
    if not sets:
        notes.append("no held-out pairs: the test prompts of the bundled one-line tasks instead; --pairs FILE gives others")
        commands = [rendering for rendering in context.renderings if rendering.kind == "command"]
        sets = {BUNDLED: _new(commands, set(), context.training_texts, notes, BUNDLED)}
    return {name: pairs for name, pairs in sets.items() if pairs}


def file_sources(files: tuple[str, ...]) -> list[SourceConfig]:
    """A source for each file of pairs, named after it. Raises UserError for one that cannot be read or has no pairs."""
    sources: dict[str, SourceConfig] = {}
    for file in dict.fromkeys(files):
        name = re.sub(r"[^\w.-]", "-", Path(file).stem, flags=re.ASCII).lstrip("-._") or "pairs"
        name = name if name not in sources else f"{name}-{len(sources) + 1}"
        sources[name] = SourceConfig(name=name, path=file)
        if not any(map(one_line_pair, islice(read_documents(sources[name]), LOOKED_AT))):
            raise UserError(f"--pairs {file}: no pairs in it; give a .jsonl file whose lines have a prompt and a command")
    return list(sources.values())


def one_line_pair(document: str) -> tuple[str, str] | None:
    """Request and command of a training document, or None for a script, a longer answer or a text without a request."""
    comment, answer = split_document(document)
    if document.startswith("#!") or not comment or not answer.strip() or "\n" in answer.strip():
        return None
    return "\n".join(comment), answer


def _drawn(source: SourceConfig, fraction: float, context: Context, notes: list[str]) -> list[Rendering]:
    held_out: dict[str, Rendering] = {}
    elsewhere: set[int] = set()
    for prompt, command, is_held_out in _split_pairs(source, fraction):
        key = normal_prompt(prompt)
        if is_held_out:
            held_out.setdefault(key, _as_rendering(source.name, prompt, command))
        else:
            elsewhere.add(text_hash(key))
    new = _new([held_out[key] for key in sorted(held_out)], elsewhere, context.training_texts, notes, source.name)
    rng = random.Random(f"{context.settings.seed}/{source.name}/pairs")
    return rng.sample(new, min(PAIRS, len(new)))


def _split_pairs(source: SourceConfig, fraction: float) -> Iterator[tuple[str, str, bool]]:
    """Prompt, command and whether held out, of each pair as it came; versions with fresh values go where it goes."""
    originals = source.model_copy(update={"fresh_values": 0.0, "versions": 1})
    found = 0
    for number, text in enumerate(islice(map(clean, read_documents(originals)), MOST_DOCUMENTS)):
        if pair := one_line_pair(text):
            found += 1
            yield *pair, split_of(document_hash(text), fraction) == "validation"
        if number == LOOKED_AT and not found:
            return


def _new(pairs: list[Rendering], elsewhere: set[int], trained: TrainingTexts, notes: list[str], name: str) -> list[Rendering]:
    """The pairs whose request is in no training pair, neither of this source nor of any other that the run trained on."""
    new = [
        pair for pair in pairs if text_hash(normal_prompt(pair.prompt)) not in elsewhere and not trained.has_prompt(pair.prompt)
    ]
    if left_out := len(pairs) - len(new):
        notes.append(f"{name}: of {len(pairs):,} held-out requests, {left_out:,} are in training with another answer: left out")
    return new


def _as_rendering(source: str, prompt: str, command: str) -> Rendering:
    """A pair in the form of a task's test prompt, which is what texts are written for."""
    return Rendering(source, source, "command", prompt, command, values={}, variants={}, given=frozenset(), part="test")
