"""All parts of the evaluation, run one after the other and written down."""

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from mlx_codegen.data.tasks import Task
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.accepted import accepted_figures
from mlx_codegen.evaluation.figures import Figure, PartResult
from mlx_codegen.evaluation.functional import functional_figures, run_samples
from mlx_codegen.evaluation.samples import Sample, draw_samples, held_out_renderings
from mlx_codegen.evaluation.sandbox import why_unavailable
from mlx_codegen.evaluation.syntax import syntax_figures
from mlx_codegen.generation.engine import Engine

PARTS = ("syntax", "function", "accepted")
USUAL_PARTS = ("syntax", "function")
"""`accepted` writes eight texts and more for every prompt, so it is measured when it is asked for."""


@dataclass
class Settings:
    """What is measured, and how the texts are drawn."""

    parts: tuple[str, ...] = USUAL_PARTS
    samples: int = 4
    """Texts for each prompt."""
    temperature: float = 0.8
    max_tokens: int = 300
    seed: int = 0
    seen: int = 1
    """Test prompts of each task that was trained on, with values that were not."""
    unseen: int = 3
    """Test prompts of each held-out task."""
    jobs: int = 2


@dataclass
class Report:
    """What came out."""

    model: str
    settings: Settings
    parts: list[PartResult] = field(default_factory=list)


def evaluate(
    engine: Engine,
    tasks: list[Task],
    settings: Settings,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Measures the parts asked for; raises UserError for an unknown one. `on_progress` hears what is done of how much."""
    if unknown := sorted(set(settings.parts) - set(PARTS)):
        raise UserError(f"no part of the evaluation is called {unknown[0]}; there are: {', '.join(PARTS)}")
    report = Report(engine.origin, settings)
    renderings = held_out_renderings(tasks, settings.seen, settings.unseen, settings.seed)
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    samples: list[Sample] = []
    if {"syntax", "function"} & set(settings.parts):
        unseen = {task.name for task in tasks if task.held_out}
        progress = partial(on_progress, "writing")
        samples = draw_samples(engine, renderings, unseen, settings.samples, settings.seed, progress, **sampling)
    if "syntax" in settings.parts:
        report.parts.append(syntax_figures(samples))
    if "function" in settings.parts:
        if reason := why_unavailable():
            report.parts.append(
                PartResult("function", "Scripts that do what was asked", notes=[f"left out: no sandbox: {reason}"])
            )
        else:
            by_name = {task.name: task for task in tasks}
            passed = run_samples(samples, by_name, settings.jobs, partial(on_progress, "running"))
            report.parts.append(functional_figures(samples, passed, settings.samples))
    if "accepted" in settings.parts:
        report.parts.append(accepted_figures(engine, renderings, settings.seed, partial(on_progress, "accepting"), **sampling))
    return report


def as_json(report: Report) -> str:
    """The whole report, with the time; figures that could not be had are null."""
    values = {"time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **asdict(report)}
    return json.dumps(_without_nan(values), indent=2, ensure_ascii=False) + "\n"


def as_markdown(report: Report) -> str:
    """Tables for a README or a model card."""
    lines = [f"Model: `{Path(report.model).name}`, temperature {report.settings.temperature:g}, seed {report.settings.seed}", ""]
    for part in report.parts:
        lines += [
            f"**{part.title}**",
            "",
            "| figure | value | 95 % interval | samples | aim |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, figure in part.figures.items():
            value, interval, aim = figure_texts(figure)
            lines.append(f"| {name} | {value} | {interval} | {figure.samples:,} | {aim} |")
        lines += ["", *(f"- {note}" for note in part.notes), ""]
    return "\n".join(lines)


def figure_texts(figure: Figure) -> tuple[str, str, str]:
    """Value, interval and aim for a reader."""
    if math.isnan(figure.value):
        return "no samples", "", ""
    if figure.unit == "%":
        aim = f"{figure.target:.0%}" if figure.target is not None else ""
        return f"{figure.value:.1%}", f"{figure.low:.1%} to {figure.high:.1%}", aim
    return f"{figure.value:.1f} {figure.unit}", f"{figure.low:.1f} to {figure.high:.1f}", ""


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
