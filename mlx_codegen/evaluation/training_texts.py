"""Was it in training? Prompts and answers against the hashes of the documents that the run really trained on."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import PHASES, PhaseName
from mlx_codegen.data.batches import open_token_files
from mlx_codegen.data.prepare import clean, read_manifest
from mlx_codegen.data.text_hashes import (
    HASH_DTYPE,
    KINDS,
    checksum,
    hash_file,
    hashes_of,
    holds,
    normal_answer,
    normal_prompt,
    open_hashes,
    split_document,
    text_hash,
)
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.figures import PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.held_out import run_of
from mlx_codegen.evaluation.samples import Sample
from mlx_codegen.generation.engine import Engine
from mlx_codegen.tokenizer import Tokenizer

NAMED = 3
"""So many prompts of an overlap are written out."""
Hashes = dict[str, NDArray[np.uint64]]


@dataclass(frozen=True)
class TrainingTexts:
    """Hashes of what a model trained on, one set for each phase; none where that is not known."""

    phases: list[Hashes] = field(default_factory=list)
    note: str = ""
    """What was checked against what, or why it could not be."""

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.phases)

    def has_prompt(self, prompt: str) -> bool:
        """Whether a request was trained on, with whatever answer."""
        return self._has("prompts", normal_prompt(prompt))

    def has_document(self, document: str) -> bool:
        """Whether a document was trained on as it is."""
        return self._has("documents", clean(document))

    def has_answer(self, document: str) -> bool:
        """Whether what stands below the request was trained on, under any request; False for nothing."""
        answer = normal_answer(split_document(document)[1])
        return bool(answer) and self._has("answers", answer)

    def _has(self, kind: str, text: str) -> bool:
        return any(holds(hashes[kind], text_hash(text)) for hashes in self.phases if kind in hashes)


def training_texts(engine: Engine) -> TrainingTexts:
    """What the run of a model trained on, all phases up to the model's own. What an earlier run did, from whose weights this
    one began (`--init-from`), is not known here."""
    run = run_of(engine)
    if run is None:
        return TrainingTexts(note=_unknown("only a run's own checkpoint has its training data beside it"))
    try:
        trained = load_checkpoint(Path(engine.origin)).progress
        if read_manifest(run.data(_phase(trained.phase)))["fingerprint"] != trained.data_fingerprint:
            return TrainingTexts(note=_unknown("the run's data was prepared anew after training"))
        upto = PHASES[: PHASES.index(_phase(trained.phase)) + 1]
        folders = [run.data(phase) for phase in upto if (run.data(phase) / "manifest.json").exists()]
        sources = [source for folder in folders for source in read_manifest(folder)["sources"]]
        if streamed := [source["name"] for source in sources if source["settings"].get("stream")]:
            return TrainingTexts(note=_unknown(f"{streamed[0]} was streamed, and nobody noted what was in it"))
        phases = [_phase_hashes(folder, engine.tokenizer) for folder in folders]
    except UserError as error:
        return TrainingTexts(note=_unknown(str(error)))
    documents = sum(len(hashes["documents"]) for hashes in phases)
    return TrainingTexts(phases, f"checked by hash against the run's {documents:,} training documents")


def _phase(name: str) -> PhaseName:
    return "language" if name == "language" else "code"


def _unknown(reason: str) -> str:
    return f"copies and prompts could not be checked against what was trained on: {reason}"


def _phase_hashes(folder: Path, tokenizer: Tokenizer) -> Hashes:
    """The files that preparing wrote; where they are missing or damaged, the token files themselves are read."""
    described = read_manifest(folder).get("training_hashes", {})
    try:
        hashes = {kind: open_hashes(hash_file(folder, kind)) for kind in KINDS}
        if all(checksum(hashes[kind]) == described[kind]["sha256"] for kind in KINDS):
            return hashes
    except (OSError, KeyError, TypeError, ValueError):
        pass
    return _hashes_of_token_files(folder, tokenizer)


def _hashes_of_token_files(folder: Path, tokenizer: Tokenizer) -> Hashes:
    """About 15 MB of text a second. Raises UserError for files that are damaged or of another tokenizer."""
    found = {kind: array("Q") for kind in KINDS}
    for file in open_token_files(folder, "train", {}, tokenizer.hash):
        start = 0
        for end in file.document_ends.tolist():
            for kind, number in hashes_of(tokenizer.decode(file.tokens[start:end].tolist())):
                found[kind].append(number)
            start = end
    return {kind: np.sort(np.array(numbers, HASH_DTYPE)) for kind, numbers in found.items()}


def add_copies(result: PartResult, samples: Sequence[Sample], texts: TrainingTexts) -> None:
    """Adds to a result how many of the samples stand in training, and how many of their prompts: an overlap is reported."""
    result.notes.append(texts.note)
    if not texts:
        return
    documents: dict[str, list[float]] = {}
    answers: dict[str, dict[str, list[float]]] = {"script": {}, "command": {}}
    prompts: dict[str, list[float]] = {}
    copied: list[str] = []
    for sample in samples:
        rendering, key = sample.rendering, prompt_key(sample.rendering.task, sample.rendering.prompt)
        is_copy = texts.has_answer(sample.script)
        documents.setdefault(key, []).append(float(texts.has_document(sample.script)))
        answers[rendering.kind].setdefault(key, []).append(float(is_copy))
        prompts[key] = [float(texts.has_prompt(rendering.prompt))]
        copied += [sample.script] if is_copy else []
    result.figures["prompts that training had"] = mean_of(prompts)
    if overlap := list(dict.fromkeys(s.rendering.prompt for s in samples if texts.has_prompt(s.rendering.prompt))):
        named = ", ".join(repr(prompt) for prompt in overlap[:NAMED])
        result.notes.append(f"prompts that training had, with this or another answer: {len(overlap)}, among them {named}")
    result.figures["copied documents"] = mean_of(documents)
    for kind, groups in answers.items():
        if groups:
            result.figures[f"copied answers, {kind}s"] = mean_of(groups)
    if copied:
        longest = max(copied, key=lambda text: len(split_document(text)[1]))
        result.examples.append({"what": "longest answer that stands in training", "text": longest})
        result.notes.append("short answers are often rightly equal to one in training; the longest is among the examples")
