"""All parts of the evaluation, run one after the other and written down."""

import datetime
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.answers import measure_answers
from mlx_codegen.evaluation.bilingual import measure_bilingual
from mlx_codegen.evaluation.commands import measure_commands
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.figures import Figure, PartResult
from mlx_codegen.evaluation.functional import measure_function
from mlx_codegen.evaluation.perplexity import measure_perplexity
from mlx_codegen.evaluation.probes import measure_probes
from mlx_codegen.evaluation.python_problems import measure_python
from mlx_codegen.evaluation.syntax import measure_syntax

# Each part measures one thing; a note in its result says what was left out and why.
PARTS: dict[str, Callable[[Context], PartResult]] = {
    "perplexity": measure_perplexity,
    "syntax": measure_syntax,
    "function": measure_function,
    "commands": measure_commands,
    "bilingual": measure_bilingual,
    "probes": measure_probes,
    "answers": measure_answers,
    "python": measure_python,
}
RARE_PARTS = ("answers", "python")
"""Measured only when asked for: `answers` writes eight texts for each of 300 prompts, `python` is for models of Python."""
USUAL_PARTS = tuple(part for part in PARTS if part not in RARE_PARTS)


@dataclass
class Report:
    """What came out."""

    model: str
    settings: Settings
    parts: list[PartResult] = field(default_factory=list)
    tokenizer: str = ""
    """Hash of its tokenizer: figures that count tokens compare only with those of the same one."""


def evaluate(context: Context) -> Report:
    """Measures the parts asked for; raises UserError for an unknown one."""
    check_parts(context.settings.parts)
    report = Report(context.engine.origin, context.settings, tokenizer=context.engine.tokenizer.hash)
    for name in context.settings.parts:
        report.parts.append(PARTS[name](context))
    return report


def check_parts(names: tuple[str, ...]) -> None:
    """Raises UserError for a name that no part has."""
    if unknown := sorted(set(names) - set(PARTS)):
        raise UserError(f"--only {unknown[0]}: no such part; there are: {', '.join(PARTS)}")


def as_json(report: Report) -> str:
    """The whole report, with the time; figures that could not be had are null."""
    values = {"time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **asdict(report)}
    text = json.dumps(without_nan(values), indent=2, ensure_ascii=False) + "\n"
    # Hundreds of prompts to a figure: one line for all of them
    return re.sub(r'"prompts": \{[^{}]*\}', lambda found: re.sub(r"\s+|\.0(?=,)", "", found[0]), text)


def as_markdown(report: Report) -> str:
    """Tables for a README or a model card."""
    name, settings = Path(*Path(report.model).parts[-3:]), report.settings
    drawn = f"temperature {settings.temperature:g}, top-k {settings.top_k}, top-p {settings.top_p:g}, seed {settings.seed}"
    lines = [f"Model: `{name}`, {drawn}", ""]
    for part in report.parts:
        lines += [
            f"**{part.title}**",
            "",
            "| figure | value | 95 % interval | samples | aim |",
            "| --- | --- | --- | --- | --- |",
        ]
        for label, figure in part.figures.items():
            value, interval, aim = figure_texts(figure)
            lines.append(f"| {label} | {value} | {interval} | {figure.samples:,} | {aim} |")
        lines += ["", *(f"- {note}" for note in part.notes), ""]
    return "\n".join(lines)


def figure_texts(figure: Figure) -> tuple[str, str, str]:
    """Value, interval and aim for a reader."""
    if math.isnan(figure.value):
        return "no samples", "", ""
    if figure.unit == "%":
        aim = f"{figure.target:.0%}" if figure.target is not None else ""
        return f"{figure.value:.1%}", f"{figure.low:.1%} to {figure.high:.1%}", aim
    value, low, high = (_three_digits(number) for number in (figure.value, figure.low, figure.high))
    return f"{value} {figure.unit}".rstrip(), f"{low} to {high}", ""


def _three_digits(number: float) -> str:
    """2.346 as 2.35, 23.46 as 23.5, 2346.1 as 2,346."""
    return f"{number:,.{2 if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"


def without_nan(value: object) -> object:
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
