"""What can be said of a model's scripts without running them: do they parse, what does shellcheck say, how are they written."""

import re
import shutil
from collections.abc import Callable
from functools import cache

from mlx_codegen.config import repository_folder
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.english import looks_like_bash
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.samples import Sample
from mlx_codegen.evaluation.training_texts import add_copies
from mlx_codegen.generation.verify import Finding, shellcheck, shellcheck_path, syntax_error

VALID_TARGET = 0.85
PRACTICE_TARGET = 0.6
GRAM = 4
UNQUOTED = frozenset({2086, 2046, 2248, 2206, 2207, 2068})
"""shellcheck's remarks on expansions without quotes."""
BUILTINS = frozenset({
    "((", ".", ":", "[", "[[", "alias", "bg", "break", "builtin", "case", "cd", "command", "continue", "declare",
    "dirs", "disown", "do", "done", "echo", "elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fc",
    "fg", "fi", "for", "function", "getopts", "hash", "help", "history", "if", "jobs", "kill", "let", "local",
    "mapfile", "popd", "printf", "pushd", "pwd", "read", "readarray", "readonly", "return", "select", "set", "shift",
    "shopt", "source", "test", "then", "time", "times", "trap", "true", "type", "typeset", "ulimit", "umask", "unalias",
    "unset", "until", "wait", "while",
})  # fmt: skip
"""Bash's own commands and keywords, which are no files."""


def repeated_share(text: str) -> float:
    """The share of 4-grams of words that stood in the text before; 0 for a text without any."""
    words = text.split()
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_code(sample: Sample) -> str:
    """The written lines that do something: no comments, no blank lines."""
    lines = [line for line in sample.completion.answer.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join(lines)


_HERE_DOCUMENT = re.compile(r"(<<-?\s*(['\"]?)(\w+)\2.*)\n(?:.*\n)*?\s*\3(?=\n|$)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.S)


def is_valid(sample: Sample) -> bool:
    """Whether it parses and is shell at all: an empty answer, one that only repeats its prompt, and prose are no scripts."""
    return is_shell(answer_code(sample)) and syntax_error(sample.script) is None


def is_shell(code: str) -> bool:
    """Whether at least half of the lines look like bash or begin with a command that exists.

    Words without quotes parse as the call of a command: of the texts of a model that knows English alone, bash accepts 80 %.
    What a script writes or hands on (here-documents, strings of several lines) may be of any language.
    """
    code = _HERE_DOCUMENT.sub(r"\1", code)
    lines = _STRING.sub(lambda string: string[0].replace("\n", " "), code).splitlines()
    shell = [line for line in lines if looks_like_bash(line) or _begins_with_command(line)]
    return bool(lines) and 2 * len(shell) >= len(lines)


def _begins_with_command(line: str) -> bool:
    first = re.match(r"[\s({!]*(\S+)", line)
    return first is not None and _is_command(first[1])


@cache
def _is_command(word: str) -> bool:
    stub = repository_folder("data") / "bash" / "stubs" / "bin" / word
    return word in BUILTINS or shutil.which(word) is not None or ("/" not in word and stub.is_file())


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
