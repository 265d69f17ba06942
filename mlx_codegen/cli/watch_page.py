"""What `mlx-codegen watch` shows: a page that fills the terminal, and one that tells the whole run."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlx_codegen.cli.display import duration
from mlx_codegen.cli.status import title
from mlx_codegen.cli.text_chart import short, text_chart
from mlx_codegen.config import PHASES
from mlx_codegen.training.history import History, PhaseHistory
from mlx_codegen.training.status import PhaseStatus, RunStatus

RECENT_STEPS = 20
RECENT_EVENTS = 6
SUMMARY_CHART_HEIGHT = 11
SMALLEST_CHART_HEIGHT = 6
LEGEND = "* training loss   o validation loss"
WAITING = "waiting for it to go on; Ctrl-C ends this view"
NOTHING_YET = "no step is taken yet: tokenizer and token files come first"


def live_page(status: RunStatus, history: History, width: int, height: int) -> Group:
    """The phase under way. The chart takes the lines that the rest leaves."""
    if history.current is None:
        return Group(title(status), Text(NOTHING_YET))
    phase = next(each for each in _begun(status, history) if each.phase == history.current)
    head = _phase_lines(status, phase, history.phases[phase.phase])
    waiting = [] if status.state == "running" else [Text(WAITING, style="dim")]
    foot = [*_events_lines(status, history), *_note_lines(status), *waiting]
    used = sum(_height(line, width) for line in (*head, *foot)) + 5  # title, legend, empty lines
    chart = _chart_lines(history.phases[phase.phase], width, max(SMALLEST_CHART_HEIGHT, height - used))
    return Group(title(status), Text(), *head, Text(), *chart, *foot)


def summary_page(status: RunStatus, history: History, width: int) -> Group:
    """All phases that were begun, one below the other."""
    lines: list[RenderableType] = [title(status)]
    for phase in _begun(status, history):
        past = history.phases[phase.phase]
        lines += [Text(), *_phase_lines(status, phase, past), *_chart_lines(past, width, SUMMARY_CHART_HEIGHT)]
    if not history.phases:
        lines.append(Text(NOTHING_YET))
    return Group(*lines, *_events_lines(status, history), *_note_lines(status))


def _begun(status: RunStatus, history: History) -> list[PhaseStatus]:
    return [phase for phase in status.phases if phase.phase in history.phases]


def _phase_lines(status: RunStatus, phase: PhaseStatus, past: PhaseHistory) -> list[RenderableType]:
    """Progress bar, losses, and what the last step said."""
    total = phase.total_steps or 0
    bar = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None):
        bar.add_column(ratio=ratio, no_wrap=True)
    steps = f"{phase.share:4.0%}  step {phase.step:,} of {total:,}"
    bar.add_row(Text(phase.phase, style="bold"), ProgressBar(total=max(1, total), completed=phase.share * max(1, total)), steps)
    return [bar, Text(" · ".join(_loss_facts(past))), Text(" · ".join(_step_facts(status, phase, past)), style="dim")]


def _loss_facts(past: PhaseHistory) -> Iterator[str]:
    recent = [metrics.loss for metrics in past.steps[-RECENT_STEPS:] if not metrics.skipped]
    if recent:
        yield f"loss {sum(recent) / len(recent):.3f}"
    if past.evaluations:
        last = past.evaluations[-1]
        yield f"validation {last.loss:.3f} ({last.bits_per_byte:.2f} bits/byte) at step {last.step:,}"
    if (best := past.best()) and best is not past.evaluations[-1]:
        yield f"best {best.loss:.3f} at step {best.step:,}"


def _step_facts(status: RunStatus, phase: PhaseStatus, past: PhaseHistory) -> Iterator[str]:
    if not past.steps:
        return
    last, left = past.steps[-1], past.seconds_left()
    if status.state == "running" and left and not phase.finished:
        yield f"{duration(left)} left"
    yield f"{last.tokens_per_second:,.0f} tokens/s"
    yield f"{short(last.tokens_seen)} tokens"
    yield f"lr {last.learning_rate:.1e}"
    yield f"gradient norm {last.gradient_norm:.2f}"
    yield f"{last.peak_memory_bytes / 2**30:.1f} GiB"
    if skipped := past.skipped():
        yield f"{len(skipped):,} step{'' if len(skipped) == 1 else 's'} skipped"


def _chart_lines(past: PhaseHistory, width: int, height: int) -> list[Text]:
    curve = [(float(metrics.tokens_seen), metrics.loss) for metrics in past.steps if not metrics.skipped]
    points = [(float(past.tokens_at(metrics.step)), metrics.loss) for metrics in past.evaluations]
    lines = text_chart(curve, points, width, height)
    return [Text(line, no_wrap=True, style="cyan") for line in lines] + ([Text(LEGEND, style="dim")] if lines else [])


def _events_lines(status: RunStatus, history: History) -> list[Text]:
    events = [
        (PHASES.index(name), step, f"  {name} step {step:,}: {text}")
        for name, past in history.phases.items()
        for step, text in _events(status, name, past)
    ]
    events.sort(key=lambda event: event[:2])
    return [Text(), Text("recent", style="bold"), *(Text(text) for _, _, text in events[-RECENT_EVENTS:])] if events else []


def _events(status: RunStatus, name: str, past: PhaseHistory) -> Iterator[tuple[int, str]]:
    """What happened in a phase, by step."""
    for step in past.resumed_at():
        yield step, "resumed"
    for first, last in _neighbours(past.skipped()):
        until = f" until step {last:,}" if last > first else ""
        yield first, f"warning: loss not finite, update skipped{until}"
    for metrics in past.evaluations:
        best = ", the best so far" if metrics.best else ""
        yield metrics.step, f"validation {metrics.loss:.3f} ({metrics.bits_per_byte:.2f} bits/byte){best}"
    if status.checkpoint and status.checkpoint.progress.phase == name:
        yield status.checkpoint.progress.step, f"saved {status.checkpoint.path.name}"
    if any(phase.phase == name and phase.finished for phase in status.phases):
        yield past.step(), "phase finished"


def _neighbours(steps: list[int]) -> list[tuple[int, int]]:
    """First and last of every row of steps that follow one another."""
    rows: list[tuple[int, int]] = []
    for step in steps:
        if rows and step == rows[-1][1] + 1:
            rows[-1] = (rows[-1][0], step)
        else:
            rows.append((step, step))
    return rows


def _note_lines(status: RunStatus) -> list[Text]:
    return [Text(f"! {note}", style="yellow") for note in status.notes]


def _height(line: RenderableType, width: int) -> int:
    """Rows that a line takes when it is wrapped, about."""
    return -(-max(1, len(line)) // max(1, width)) if isinstance(line, Text) else 1
