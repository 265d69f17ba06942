"""What can be said of a model's scripts without running them: do they parse, what does shellcheck say, how are they written."""

import re
from collections.abc import Callable

from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.samples import Sample
from mlx_codegen.evaluation.training_texts import add_copies
from mlx_codegen.generation.verify import Finding, shellcheck, shellcheck_path, syntax_error

VALID_TARGET = 0.85
PRACTICE_TARGET = 0.6
GRAM = 4
UNQUOTED = frozenset({2086, 2046, 2248, 2206, 2207, 2068})
"""shellcheck's remarks on expansions without quotes."""


def repeated_share(text: str) -> float:
    """The share of 4-grams of words that stood in the text before; 0 for a text without any."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_code(sample: Sample) -> str:
    """The written lines that do something: no comments, no blank lines."""
    lines = [line for line in sample.completion.answer.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join(lines)


def is_valid(sample: Sample) -> bool:
    """Whether it parses and does anything at all: an empty answer and one that only repeats its prompt are no scripts."""
    return bool(answer_code(sample)) and syntax_error(sample.script) is None


def measure_syntax(context: Context) -> PartResult:
    """Looks at what the model writes for the test prompts."""
    result = syntax_figures(context.samples)
    add_copies(result, context.samples, context.training_texts)
    return result


def syntax_figures(samples: list[Sample]) -> PartResult:
    """Share that parses, passes shellcheck, ends by itself; length and repetition."""
    result = PartResult("syntax", "Scripts that parse")
    valid = [is_valid(sample) for sample in samples]

    def share(values: list[bool] | list[float], unit: str = "%", target: float | None = None) -> Figure:
        return mean_of(grouped(samples, [float(value) for value in values]), unit, target)

    result.figures["valid bash"] = share(valid, target=VALID_TARGET)
    for kind in ("script", "command"):
        of_kind = [(s, v) for s, v in zip(samples, valid, strict=True) if s.rendering.kind == kind]
        if of_kind:
            figure = mean_of(grouped([s for s, _ in of_kind], [float(v) for _, v in of_kind]))
            result.figures[f"valid bash, {kind}s"] = figure
    if shellcheck_path() is None:
        result.notes.append("shellcheck is not installed: its figures and those of best practice are left out")
    else:
        findings = shellcheck([sample.script for sample in samples])
        for severity, worse in (("error", {"error"}), ("warning", {"error", "warning"}), ("style", None)):
            clean = [v and not _found(found, worse) for v, found in zip(valid, findings, strict=True)]
            result.figures[f"shellcheck-clean at {severity}"] = share(clean)
        result.figures |= practice_figures(samples, valid, findings)
    result.figures["ends by itself"] = share([sample.completion.ended for sample in samples])
    result.figures["mean length"] = share([float(sample.completion.tokens) for sample in samples], "tokens")
    result.figures["repeated 4-grams"] = share([repeated_share(sample.completion.answer) for sample in samples])
    return result


def practice_figures(samples: list[Sample], valid: list[bool], findings: list[list[Finding]]) -> dict[str, Figure]:
    """Share of scripts (one-line commands aside) that follow each rule of good practice."""
    rules: dict[str, Callable[[str, list[Finding]], bool]] = {
        "best practice: shellcheck-clean at style": lambda code, found: not found,
        "best practice: quoted expansions": lambda code, found: not any(f.code in UNQUOTED for f in found),
        "best practice: strict mode": lambda code, found: bool(re.search(r"^\s*set -[a-z]*e|^\s*set -o errexit", code, re.M)),
        "best practice: checked arguments": checks_arguments,
    }
    scripts = [
        (s, answer_code(s), v, found)
        for s, v, found in zip(samples, valid, findings, strict=True)
        if s.rendering.kind == "script"
    ]
    figures = {}
    for name, follows in rules.items():
        values = [float(v and follows(code, found)) for _, code, v, found in scripts]
        figures[name] = mean_of(grouped([s for s, *_ in scripts], values), target=PRACTICE_TARGET)
    return figures


def checks_arguments(code: str, found: list[Finding]) -> bool:
    """A script that takes arguments says so when they are missing, or has defaults; one that takes none has nothing to check."""
    takes = re.search(r"\$[1-9@*]|\$\{[1-9@*]", code)
    return not takes or bool(re.search(r"\$\{[1-9][^}]*:?[?-]|\$#|-z \"?\$\{?[1-9]|getopts", code))


def grouped(samples: list[Sample], values: list[float]) -> dict[str, list[float]]:
    """The values of each prompt together, under its key."""
    groups: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        groups.setdefault(prompt_key(sample.rendering.task, sample.rendering.prompt), []).append(value)
    return groups


def _found(findings: list[Finding], severities: set[str] | None) -> bool:
    return any(severities is None or finding.severity in severities for finding in findings)
