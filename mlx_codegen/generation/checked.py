"""Scripts that are known to parse: several are written at once, broken ones fall away, the rest is ranked."""

import secrets
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_codegen.generation.engine import Completion, Engine
from mlx_codegen.generation.verify import Finding, shellcheck, shellcheck_path, syntax_error

BATCH = 8
"""Texts that `valid` and `generate` write at once: one is nearly always good, and eight cost a CPU little more than one."""
MOST_BATCHES = 8
WORTH = {"error": 4.0, "warning": 2.0, "info": 0.5, "style": 0.25}
"""What a finding of shellcheck costs in the ranking, in nats of mean log-probability: findings count first."""


@dataclass(frozen=True)
class Candidate:
    """A text with what the checks say of it."""

    completion: Completion
    seed: int
    error: str | None
    """What `bash -n` says, or None."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def rank(self) -> float:
        """Higher is better."""
        return self.completion.mean_logprob - sum(WORTH[finding.severity] for finding in self.findings)


@dataclass(frozen=True)
class Chosen:
    """The best candidate, and what it took to get it."""

    best: Candidate | None
    """None if no text parsed."""
    likeliest: Completion
    """The text that the model was surest of, whether it parses or not."""
    written: int
    failed: int
    """Texts that `bash -n` refused."""
    tokens: int
    """All tokens that were written for it."""


def best_of(engine: Engine, prompt: str, count: int, seed: int | None = None, **keywords: Any) -> Chosen:
    """Writes `count` texts side by side and returns the best that parses; text i has the seed `seed + i`."""
    first = secrets.randbits(32) if seed is None else seed
    seeds = [(first + number) % 2**64 for number in range(count)]
    completions = engine.complete([prompt] * count, seeds, **keywords)
    candidates = check(completions, seeds)
    good = [candidate for candidate in candidates if candidate.error is None]
    best = max(good, key=lambda candidate: candidate.rank, default=None)
    likeliest = max(completions, key=lambda completion: completion.mean_logprob)
    return Chosen(best, likeliest, count, count - len(good), sum(completion.tokens for completion in completions))


def valid(engine: Engine, prompt: str, seed: int | None = None, batch: int = BATCH, **keywords: Any) -> Chosen:
    """Writes batches until a text parses and does something. What the length limit tore is cut whole.

    `best` is None if nothing parsed in all the batches.
    """
    first = secrets.randbits(32) if seed is None else seed
    chosen = best_of(engine, prompt, batch, first, **keywords)
    for number in range(1, MOST_BATCHES):
        if chosen.best is not None:
            break
        more = best_of(engine, prompt, batch, first + number * batch, **keywords)
        written, failed = chosen.written + more.written, chosen.failed + more.failed
        chosen = replace(more, written=written, failed=failed, tokens=chosen.tokens + more.tokens)
    return chosen


def check(completions: list[Completion], seeds: list[int]) -> list[Candidate]:
    """Cuts torn texts whole, parses all, and lints those that parse."""
    whole = [completion if completion.ended else cut_whole(completion) for completion in completions]
    errors = [syntax_error(text.text) or (None if does_something(text) else "no command in it") for text in whole]
    candidates = [Candidate(text, seed, error) for text, seed, error in zip(whole, seeds, errors, strict=True)]
    if shellcheck_path() is None:
        return candidates
    good = [number for number, candidate in enumerate(candidates) if candidate.error is None]
    for number, findings in zip(good, shellcheck([whole[number].text for number in good]), strict=True):
        candidates[number] = replace(candidates[number], findings=findings)
    return candidates


def cut_whole(completion: Completion) -> Completion:
    """Cuts a text that the length limit tore after its last complete command.

    The last line may end in the middle of a word and still parse, so it goes in any case; then as many lines as it takes
    until what is left parses: that is the beginning of the block that was torn.
    """
    lines = completion.answer.split("\n")[:-1]
    while lines and syntax_error(completion.prompt + "\n".join(lines) + "\n"):
        lines.pop()
    return replace(completion, answer="\n".join(lines) + "\n" if lines else "")


def does_something(completion: Completion) -> bool:
    """True if the answer holds more than comments and blank lines."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in completion.answer.splitlines())
