"""One-line commands beside those that people wrote: the same command, the same utility, the same flags, the same values?

Another command can be as good (`ls *.txt` and `find . -name '*.txt'`), so the figures are lower bounds. BLEU is sacrebleu's
(Papineni et al., 2002; Post, 2018).
"""

import re
from collections import Counter
from functools import partial
from importlib.util import find_spec

from mlx_codegen.config import repository_folder
from mlx_codegen.data.fresh_values import NUMBER, shared_values
from mlx_codegen.data.tasks import Words, load_words
from mlx_codegen.data.text_hashes import normal_answer
from mlx_codegen.evaluation import shell_parse
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import RESAMPLES, Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.pairs import pair_sets
from mlx_codegen.evaluation.samples import Sample, draw_samples
from mlx_codegen.evaluation.shell_parse import Utility, utilities_and_flags
from mlx_codegen.evaluation.syntax import answer_code
from mlx_codegen.evaluation.training_texts import TrainingTexts

TITLE = "One-line commands beside those that people wrote"
LONGEST_TOKENS = 128
"""999 of 1,000 commands of NL2Bash are shorter (of 2,048 pieces); else models that repeat themselves would take all the time."""
TOKENIZE = "intl"
"""sacrebleu's tokenization that sets punctuation apart: `'*.log'` is five tokens, and a path is its names."""


def measure_commands(context: Context) -> PartResult:
    """One answer for each held-out pair, the likeliest; left out, with a note, where a library is missing."""
    result = PartResult("commands", TITLE)
    if reason := why_unavailable():
        result.notes.append(f"left out: {reason}; pip install 'mlx-codegen[evaluate]'")
        return result
    for name, pairs in pair_sets(context, result.notes).items():
        progress = partial(context.on_progress, f"answering {name}")
        limit = min(LONGEST_TOKENS, context.settings.max_tokens)
        samples = draw_samples(context.engine, pairs, set(), 1, 0, progress, temperature=0.0, max_tokens=limit)
        add_pair_figures(result, name, samples, context.training_texts)
    result.notes.append("one answer a pair, at temperature 0")
    result.notes.append(context.training_texts.note)
    return result


def why_unavailable() -> str | None:
    """Returns what is missing here, or None."""
    return shell_parse.why_unavailable() or ("sacrebleu is not installed" if find_spec("sacrebleu") is None else None)


def add_pair_figures(result: PartResult, name: str, samples: list[Sample], trained: TrainingTexts) -> None:
    """Adds to a result what the answers for the pairs of one source are worth."""
    figures, wanted = result.figures, [utilities_and_flags(sample.rendering.script) for sample in samples]
    exact = [is_exact(sample) for sample in samples]
    figures[f"exact match, {name}"] = _mean(samples, [[float(same)] for same in exact])
    readable = [(sample, utilities) for sample, utilities in zip(samples, wanted, strict=True) if utilities]
    if unreadable := len(samples) - len(readable):
        result.notes.append(f"{name}: {unreadable} wanted commands do not parse or call nothing: not in the figures of utilities")
    compared = [likeness(utilities, utilities_and_flags(sample.completion.answer) or []) for sample, utilities in readable]
    for label in ("same utility", "utilities matched", "same utility and flags", "all utilities and flags"):
        figures[f"{label}, {name}"] = _mean([sample for sample, _ in readable], [[found[label]] for found in compared])
    words = load_words(repository_folder("data") / "bash")
    figures[f"values copied, {name}"] = _mean(samples, [copied_values(sample, words) for sample in samples])
    figures[f"BLEU, {name}"], signature = bleu(samples)
    if trained:
        had = [[float(trained.has_answer(sample.rendering.document))] for sample in samples]
        figures[f"wanted commands that training had, {name}"] = _mean(samples, had)
    result.notes.append(f"BLEU, {name}: {signature}")
    result.examples += _examples(samples, exact)


def is_exact(sample: Sample) -> bool:
    """Whether the whole answer is the wanted command, white space aside."""
    return normal_answer(sample.completion.answer) == normal_answer(sample.rendering.script)


def likeness(wanted: list[Utility], written: list[Utility]) -> dict[str, float]:
    """What two commands share: the first utility; utilities, of the longer one's; both with their flags.

    Nothing equals nothing: a command without utilities is like no other.
    """
    first = bool(wanted and written) and wanted[0].name == written[0].name
    names, written_names = (Counter(utility.name for utility in utilities) for utilities in (wanted, written))
    shared = (names & written_names).total()
    return {
        "same utility": float(first),
        "utilities matched": shared / max(len(wanted), len(written), 1),
        "same utility and flags": float(first and wanted[0].flags == written[0].flags),
        "all utilities and flags": float(first and wanted == written),
    }


def copied_values(sample: Sample, words: Words) -> list[float]:
    """For each value that request and wanted command share (paths, names, quoted words, numbers): is it in the answer?"""
    prompt, answer = sample.rendering.prompt, answer_code(sample)
    wanted = _values(prompt, sample.rendering.script, words)
    written = _values(prompt, answer, words)
    return [float(value in written) for value in sorted(wanted)]


def _values(prompt: str, command: str, words: Words) -> set[str]:
    numbers = {match[0] for match in NUMBER.finditer(prompt) if int(match[0]) > 1}
    return {value.text for value in shared_values(prompt, command, words)} | (numbers & set(re.findall(r"\d+", command)))


def bleu(samples: list[Sample]) -> tuple[Figure, str]:
    """BLEU of all answers together, from 0 to 100, with sacrebleu's bootstrap interval and its signature.

    Comments aside: a request that is written once more has many of the words of its command.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=TOKENIZE, force=True)  # force: no warning about texts that look tokenised
    answers = [normal_answer(answer_code(sample)) for sample in samples]
    score = metric.corpus_score(answers, [[normal_answer(sample.rendering.script) for sample in samples]], RESAMPLES)
    mean, half = score._mean, score._ci
    return Figure(score.score, max(0.0, mean - half), mean + half, len(samples), "BLEU"), str(metric.get_signature())


def _mean(samples: list[Sample], values: list[list[float]]) -> Figure:
    keys = [prompt_key(sample.rendering.task, sample.rendering.prompt) for sample in samples]
    return mean_of(dict(zip(keys, values, strict=True)))


def _examples(samples: list[Sample], exact: list[bool]) -> list[dict[str, str]]:
    examples = []
    for good in (True, False):
        chosen = [sample for sample, same in zip(samples, exact, strict=True) if same is good][:3]
        for sample in chosen:
            wanted = "" if good else f"\n# wanted: {sample.rendering.script.strip()}"
            examples.append({"what": "the wanted command" if good else "another", "text": sample.script.rstrip() + wanted})
    return examples
