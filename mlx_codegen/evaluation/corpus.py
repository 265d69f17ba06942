"""Are the bundled tasks what they promise? Every script is parsed, linted, run in the sandbox, and its outcome checked."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mlx_codegen.data.tasks import Rendering, Task, render, render_check
from mlx_codegen.evaluation.sandbox import SETUP_FAILED, Limits, Outcome, run_script, why_unavailable
from mlx_codegen.generation.verify import shellcheck, shellcheck_path, syntax_error

LIMITS = Limits()
DRAWS = 60
"""Renderings looked at to find the most varied ones."""
WORTHLESS = {"empty script": "", "failing script": "exit 1\n"}
"""A check must tell both from a script that does what was asked: a check of several steps is easily left half looked at."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with one rendering of a task."""

    task: str
    kind: str
    """`bash -n`, `shellcheck`, `setup`, `check`, `empty script`, `failing script` or `no check`."""
    detail: str
    rendering: Rendering


@dataclass
class Report:
    """What was found in one task, or in all of them together."""

    tasks: int = 0
    renderings: int = 0
    runs: int = 0
    checks_passed: int = 0
    shellcheck_findings: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Counts another report in."""
        for name in ("tasks", "renderings", "runs", "checks_passed", "shellcheck_findings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults += other.faults


def verify_tasks(
    tasks: list[Task], renderings: int, seed: int, jobs: int, on_task: Callable[[Task, Report], None] = lambda task, report: None
) -> Report:
    """Verifies every task, `jobs` at a time, and returns the totals; `on_task` hears of each as it is done.

    Without shellcheck or without a sandbox, the rest is still done.
    """
    total = Report()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for task, report in zip(tasks, pool.map(lambda task: verify_task(task, renderings, seed), tasks), strict=True):
            total.add(report)
            on_task(task, report)
    return total


def verify_task(task: Task, renderings: int, seed: int) -> Report:
    """Renders a task as variously as it can be, and parses, lints, runs and checks each rendering."""
    chosen = varied_renderings(task, renderings, seed)
    report = Report(tasks=1, renderings=len(chosen))
    report.faults += _static_faults(chosen, report)
    if not why_unavailable():
        for rendering in chosen:
            report.faults += _run_faults(task, rendering, report)
    return report


def varied_renderings(task: Task, count: int, seed: int) -> list[Rendering]:
    """Returns `count` renderings (fewer if there are no more) that differ in variants and in what the prompt names."""
    rng = random.Random(f"{seed}/{task.name}/verify")
    groups: dict[object, list[Rendering]] = {}
    wordings = [False, True] if task.unseen_prompts else [False]
    for unseen in wordings * (DRAWS * max(1, count // 5)):
        drawn = render(task, rng, unseen_wording=unseen)
        groups.setdefault((tuple(drawn.variants.items()), drawn.given, unseen), []).append(drawn)
    return list(_one_of_each_in_turn(list(groups.values()), count))


def _one_of_each_in_turn(groups: list[list[Rendering]], count: int) -> Iterator[Rendering]:
    seen: set[str] = set()
    for turn in range(max(map(len, groups))):
        for group in groups:
            if turn < len(group) and group[turn].document not in seen and len(seen) < count:
                seen.add(group[turn].document)
                yield group[turn]


def _static_faults(chosen: list[Rendering], report: Report) -> Iterator[Fault]:
    for rendering in chosen:
        if error := syntax_error(rendering.document):
            yield Fault(rendering.task, "bash -n", error, rendering)
    if shellcheck_path() is None:
        return
    findings = shellcheck([rendering.document for rendering in chosen], "warning")
    report.shellcheck_findings += sum(map(len, findings))
    for rendering, found in zip(chosen, findings, strict=True):
        if found:
            detail = "; ".join(f"line {f.line}: SC{f.code} {f.message}" for f in found)
            yield Fault(rendering.task, "shellcheck", detail, rendering)


def _run_faults(task: Task, rendering: Rendering, report: Report) -> Iterator[Fault]:
    setup, check = render_check(task, rendering)
    if not check.strip():
        yield Fault(task.name, "no check", "the task has no check", rendering)
        return
    outcome = run_script(rendering.document, setup=setup, check=check, limits=LIMITS)
    report.runs += 1
    if outcome.status == SETUP_FAILED:
        yield Fault(task.name, "setup", _tail(outcome), rendering)
        return
    if outcome.passed:
        report.checks_passed += 1
    else:
        yield Fault(task.name, "check", _tail(outcome), rendering)
    for what, script in WORTHLESS.items():
        if run_script(script, setup=setup, check=check, limits=LIMITS).passed:
            yield Fault(task.name, what, f"the check passes for this: {what}", rendering)


def _tail(outcome: Outcome) -> str:
    how = "took too long" if outcome.timed_out else f"exit status {outcome.status}"
    printed = (outcome.stdout + outcome.stderr).strip()
    return f"{how}: {printed[-600:]}" if printed else how
