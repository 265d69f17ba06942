"""Does a model still know English after it learned bash? Its language phase is looked at from both ends of the code phase.

Two models are compared: the best checkpoint of the language phase, from which the code phase began, and the model itself.
Both score the same unseen English, and both go on with the same openings of stories, with the same random numbers.
"""

import random
import re
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.english import FEWEST_WORDS, KNOWN_SHARE, count_known, is_english, looks_like_bash
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.held_out import Documents, run_of, validation_texts
from mlx_codegen.evaluation.samples import BATCH
from mlx_codegen.evaluation.sliding_window import document_losses
from mlx_codegen.generation.engine import Completion, Engine, load

CONTINUATION_TOKENS = 60
REAL_CHARACTERS = 240
"""About as long as a continuation."""
OPENINGS = (
    "Once upon a time there was a little girl who",
    "One sunny morning Tom and his dog went to the",
    "The old man had a small boat. Every day he",
    "It was raining, so the children stayed at home and",
    "A tiny mouse lived under the kitchen floor. One night",
    "Mia wanted to bake a cake for her mother, but",
    "The red kite flew high above the trees. Then",
    "In the middle of the forest stood a house where",
    "Ben found a key in the garden. He asked his sister",
    "The cat sat by the window and looked at the",
    '"Please help me," said the little bird. "I cannot',
    "Grandma told them a story about a king who",
    "The snow was deep, and the pond was",
    "Lucy lost her favourite doll. She looked under the bed and",
    "The big bear was hungry, but he did not want to",
    "After school the boys ran to the river because",
    "There was a frog who wanted to sing. All the animals",
    "Mother put the soup on the table and said that",
    "The train was late, and Anna was afraid that",
    "At night the stars came out, and the moon",
)
"""Beginnings of stories for children, in words that every story has; none is taken from a book."""


def measure_bilingual(context: Context) -> PartResult:
    """Loss on unseen English and the share of continuations that are English, before the code phase and after it."""
    result = PartResult("bilingual", "English before and after the code phase")
    models = before_and_after(context.engine, result.notes)
    written = {when: write(engine, context, when) for when, engine in models.items()}
    for when, answers in written.items():
        result.figures |= {f"{name}, {when}": figure for name, figure in english_figures(answers).items()}
    for source, documents in validation_texts(context, "language", result.notes).items():
        losses = {}
        for when, engine in models.items():
            progress = partial(context.on_progress, f"scoring {source} {when}")
            losses[when] = document_losses(engine.model, documents, engine.tokenizer.end_of_text_id, progress)
        result.figures |= {f"{source}: {name}": figure for name, figure in loss_figures(documents, losses).items()}
        result.figures[f"{source}: documents in English"] = _documents_in_english(documents, context.engine)
    result.examples = [
        {"opening": opening, **{when: answers[opening][0].answer for when, answers in written.items()}} for opening in OPENINGS
    ]
    result.notes.append(
        f"English: at least {FEWEST_WORDS} words, {KNOWN_SHARE:.0%} of them in data/english (words with a capital aside), no "
        "line that looks like bash; the same measure of the unseen documents' beginnings shows what can be reached"
    )
    return result


def before_and_after(engine: Engine, notes: list[str]) -> dict[str, Engine]:
    """The model of the language phase as `before` and the given one as `after`; what is missing is told in `notes`."""
    if engine.phase == "language":
        notes.append("the model ends with the language phase: there is nothing after it")
        return {"before": engine}
    run = run_of(engine)
    if run is None:
        notes.append("the model is not in the folder of its run: what it was before the code phase is not known")
        return {"after": engine}
    best = run.checkpoint("language", "best")
    if not best.exists():
        notes.append(f"there is no {best.parent.name}/{best.name} beside the model, so nothing to compare it with")
        return {"after": engine}
    try:
        before = load(best)
    except UserError as error:
        notes.append(f"the language phase is left out: {error}")
        return {"after": engine}
    if before.tokenizer.hash != engine.tokenizer.hash:
        notes.append("the language phase has another tokenizer, so the code phase did not begin there: it is left out")
        return {"after": engine}
    return {"before": before, "after": engine}


def loss_figures(documents: Documents, losses: Mapping[str, list[NDArray[np.float64]]]) -> dict[str, Figure]:
    """Mean loss of each model, and its change token by token: the documents' own difficulty falls out of that interval."""
    columns = {f"loss, {when}": values for when, values in losses.items()}
    if len(losses) == 2:
        pairs = zip(losses["before"], losses["after"], strict=True)
        columns["change of loss"] = [after - before for before, after in pairs]
    keys = [prompt_key(str(number), str(ids)) for number, ids in enumerate(documents)]
    return {
        name: mean_of({key: nats.tolist() for key, nats in zip(keys, values, strict=True)}, "nats/token")
        for name, values in columns.items()
    }


def write(engine: Engine, context: Context, when: str) -> dict[str, list[Completion]]:
    """Continuations of every opening; the seeds are the same for every model."""
    settings = context.settings
    jobs = [(opening, number) for opening in OPENINGS for number in range(settings.samples)]
    written: dict[str, list[Completion]] = {opening: [] for opening in OPENINGS}
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        seeds = [random.Random(f"{settings.seed}/{opening}/{number}").getrandbits(32) for opening, number in part]
        sampling = {**context.sampling, "max_tokens": CONTINUATION_TOKENS}
        for completion in engine.complete([opening for opening, _ in part], seeds, plain=True, **sampling):
            written[completion.prompt].append(completion)
        context.on_progress(f"continuing {when}", start + len(part), len(jobs))
    return written


def english_figures(written: Mapping[str, list[Completion]]) -> dict[str, Figure]:
    """Share of continuations that are English and of those with a line of bash, and of all words those that are known."""
    english: dict[str, list[float]] = {}
    bash: dict[str, list[float]] = {}
    words: dict[str, list[float]] = {}
    for opening, completions in written.items():
        key = prompt_key(opening)
        texts = [continuation(completion) for completion in completions]
        english[key] = [float(is_english(text)) for text in texts]
        bash[key] = [float(any(looks_like_bash(line) for line in text.splitlines())) for text in texts]
        counts = [count_known(text.split()) for text in texts]
        known, counted = sum(count[0] for count in counts), sum(count[1] for count in counts)
        words[key] = [1.0] * known + [0.0] * (counted - known)
    return {
        "continuations in English": mean_of(english),
        "continuations with bash": mean_of(bash),
        "known words": mean_of(words),
    }


def continuation(completion: Completion) -> str:
    """The answer from its first whole word to its last: it may go on with the opening's last word, and be cut off in one."""
    text = re.sub(r"^\S+", "", completion.answer)
    return text if completion.ended else re.sub(r"\S+$", "", text)


def _documents_in_english(documents: Documents, engine: Engine) -> Figure:
    """Share of the unseen documents whose beginnings the measure takes for English: what the models could reach."""
    beginnings = [engine.tokenizer.decode(ids)[:REAL_CHARACTERS].rpartition(" ")[0] for ids in documents]
    return mean_of([[float(is_english(text))] for text in beginnings])
