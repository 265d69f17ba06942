"""Probes: small questions with one right answer, which show what a model has learned long before its scripts run.

Each is asked twice. *Likelihood*: does the model hold the right continuation of a text for likelier than each wrong one?
*Writing*: left to itself (greedily, WRITTEN tokens), does it show the right thing in the place where it belongs?

Likelihoods are total log-probabilities of whole texts, context and continuation encoded as one. Cut at the context's end
they would be wrong: the token that spans it (`x" ]` is one for some tokenizers) is another than in the context alone. The
context is the same for all, and so are the first tokens: what is added up begins with the first token that differs. The
total is the probability of a continuation and needs no division by its length; no continuation is the beginning of another.
Writing begins after the context as it is encoded by itself, like any prompt: where a token would have spanned its end, the
model has it harder.

Sources: minimal pairs (BLiMP, Warstadt et al., 2020, arXiv 1912.00582); repeated sequences (Olsson et al., 2022,
arXiv 2209.11895).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mlx_codegen.config import repository_folder
from mlx_codegen.data.yaml_file import Strict, read_yaml
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.samples import BATCH
from mlx_codegen.evaluation.sliding_window import document_losses
from mlx_codegen.generation.engine import Engine

FILE = "probes.yaml"
TITLE = "Probes: brackets, keywords, indentation, patterns, English"
WRITTEN = 32
"""Tokens of free writing."""

Place = Literal["begins", "first line", "own line", "indentation"]
Progress = Callable[[int, int], None]


class Question(Strict):
    """One probe as the file has it."""

    context: str = Field(min_length=1)
    right: str
    wrong: list[str] = Field(min_length=1, max_length=3)
    shows: str | None = None
    """What free writing has to show; default: `right` without the end of its line."""

    @model_validator(mode="after")
    def _exclude_each_other(self) -> "Question":
        for one, other in permutations([self.right, *self.wrong], 2):
            if other.startswith(one):
                raise ValueError(f"the continuation {one!r} is the beginning of {other!r}")
        if self.shows is not None and self.shows.strip() not in self.right:
            raise ValueError(f"the right continuation does not show {self.shows!r}")
        return self


class Kind(Strict):
    """Probes of one kind."""

    place: Place
    opening: str = ""
    """Stands before every context."""
    probes: list[Question] = Field(min_length=1)


class ProbeFile(Strict):
    """The file of probes."""

    kinds: dict[str, Kind] = Field(min_length=1)


@dataclass(frozen=True)
class Probe:
    """One probe, ready to be asked."""

    kind: str
    place: Place
    context: str
    right: str
    wrong: tuple[str, ...]
    shows: str

    @property
    def texts(self) -> list[str]:
        """The whole texts, the right one first."""
        return [self.context + continuation for continuation in (self.right, *self.wrong)]


@dataclass(frozen=True)
class Answer:
    """What a model made of a probe."""

    likelihoods: list[float]
    """Total log-probabilities in nats, the right continuation first; empty if the probe does not fit into the window."""
    written: str

    @property
    def preferred(self) -> bool:
        """Whether the right continuation is likelier than all others."""
        return bool(self.likelihoods) and self.likelihoods[0] > max(self.likelihoods[1:])


def load_probes(path: Path | None = None) -> list[Probe]:
    """Returns the bundled probes, or those of another file; raises UserError for the first mistake in it."""
    file = read_yaml(path or repository_folder("data") / "evaluation" / FILE, ProbeFile)
    return [
        Probe(name, kind.place, kind.opening + each.context, each.right, tuple(each.wrong), each.shows or each.right.rstrip("\n"))
        for name, kind in file.kinds.items()
        for each in kind.probes
    ]


def measure_probes(context: Context) -> PartResult:
    """Asks all probes both ways."""
    probes = load_probes()
    return probe_figures(probes, ask(context.engine, probes, context.on_progress))


def ask(
    engine: Engine, probes: list[Probe], on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> list[Answer]:
    """Returns the model's answers; a probe that is longer than the model's window gets none, which is a failure of the model."""
    encoded = [engine.tokenizer.encode_batch(probe.texts) for probe in probes]
    fitting = [number for number, rows in enumerate(encoded) if max(map(len, rows)) + 1 < engine.model.config.context_length]
    totals = log_likelihoods(engine, [encoded[number] for number in fitting], partial(on_progress, "weighing"))
    texts = _write(engine, [probes[number].context for number in fitting], partial(on_progress, "continuing"))
    answers = {number: Answer(total, text) for number, total, text in zip(fitting, totals, texts, strict=True)}
    return [answers.get(number, Answer([], "")) for number in range(len(probes))]


def log_likelihoods(
    engine: Engine, groups: list[list[list[int]]], on_progress: Progress = lambda done, total: None
) -> list[list[float]]:
    """Total log-probabilities in nats of the texts of each group, from the first token on that differs within the group.

    A group is a few lists of token ids with the same beginning, none longer than the model's window.
    """
    rows = [ids for group in groups for ids in group]
    losses = iter(document_losses(engine.model, rows, engine.tokenizer.end_of_text_id, on_progress))
    return [[-float(next(losses)[split:].sum()) for _ in group] for group, split in zip(groups, map(_split, groups), strict=True)]


def _split(group: list[list[int]]) -> int:
    """The place of the first token that differs; there is one, since no continuation is the beginning of another."""
    return next(place for place, ids in enumerate(zip(*group, strict=False)) if len(set(ids)) > 1)


def _write(engine: Engine, contexts: list[str], on_progress: Progress) -> list[str]:
    """What the model writes greedily after each context, in batches of about one length."""
    order = sorted(range(len(contexts)), key=lambda number: len(contexts[number]))
    written = [""] * len(contexts)
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        prompts, seeds = [contexts[place] for place in places], [0] * len(places)
        texts = engine.complete(prompts, seeds, plain=True, temperature=0, max_tokens=WRITTEN)
        for place, text in zip(places, texts, strict=True):
            written[place] = text.answer
        on_progress(start + len(places), len(order))
    return written


def shows_it(probe: Probe, written: str) -> bool:
    """Whether free writing shows the right thing in its place."""
    lines = written.split("\n")
    if probe.place == "begins":
        return _stands(probe.shows, written, re.match)
    if probe.place == "first line":
        return _stands(probe.shows, lines[0], re.search)
    if probe.place == "own line":
        # The first word that closes anything here or further out; what is indented deeper are blocks within
        ends, limit = {text.strip() for text in (probe.right, *probe.wrong)}, len(_indentation(probe.right))
        closing = [line for line in lines if line.strip() in ends and len(_indentation(line)) <= limit]
        return closing[:1] == [probe.right.rstrip("\n")]
    return bool(lines[0].strip()) and _indentation(lines[0]) == _indentation(probe.right)


def _stands(wanted: str, text: str, find: Callable[[str, str], object]) -> bool:
    """Whole words and signs count: `do` is not in `done`, 1 not in 10, and `]` not in `]]`."""
    before, after = (r"\w" if end.isalnum() else re.escape(end) for end in (wanted[0], wanted[-1]))
    return bool(find(f"(?<!{before}){re.escape(wanted)}(?!{after})", text))


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def probe_figures(probes: list[Probe], answers: list[Answer]) -> PartResult:
    """Pass rates of both ways of asking, over all probes and by kind."""
    result = PartResult("probes", TITLE)
    wrote = [shows_it(probe, answer.written) for probe, answer in zip(probes, answers, strict=True)]
    likely = [answer.preferred for answer in answers]
    for way, passed in (("likelihood", likely), ("writing", wrote)):
        values = {prompt_key(probe.kind, probe.context): [float(good)] for probe, good in zip(probes, passed, strict=True)}
        result.figures[f"{way}, all kinds"] = mean_of(values)
        for kind in dict.fromkeys(probe.kind for probe in probes):
            keys = [prompt_key(probe.kind, probe.context) for probe in probes if probe.kind == kind]
            result.figures[f"{way}, {kind}"] = mean_of({key: values[key] for key in keys})
    chance = sum(1 / len(probe.texts) for probe in probes) / len(probes)
    result.notes.append(f"whoever guesses is right in {chance:.0%} of the likelihoods")
    if left_out := sum(not answer.likelihoods for answer in answers):
        result.notes.append(f"{left_out} of {len(probes)} probes are longer than the model's window and count as failed")
    for kind in dict.fromkeys(probe.kind for probe in probes):
        for good, what in ((True, "shown"), (False, "not shown")):
            chosen = [(p, a) for p, a, w in zip(probes, answers, wrote, strict=True) if (p.kind, w) == (kind, good)][:1]
            result.examples += [{"what": f"{what}: {kind}", "text": f"{p.context}▸{a.written}"} for p, a in chosen]
    return result
