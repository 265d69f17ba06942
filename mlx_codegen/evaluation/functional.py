"""Does a script do what was asked? It is run in the sandbox, and the task's check looks at what it did."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mlx_codegen.data.tasks import Task, render_check
from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, pass_at_k, prompt_key
from mlx_codegen.evaluation.samples import Sample
from mlx_codegen.evaluation.sandbox import SETUP_FAILED, Limits, run_script, why_unavailable

LIMITS = Limits(seconds=5)
TITLE = "Scripts that do what was asked, by running them"


def measure_function(context: Context) -> PartResult:
    """Runs every script; left out, with a note, where there is no sandbox."""
    if reason := why_unavailable():
        return PartResult("function", TITLE, notes=[f"left out: no sandbox: {reason}"])
    by_name = {task.name: task for task in context.tasks}
    passed = run_samples(context.samples, by_name, context.settings.jobs, partial(context.on_progress, "running"))
    return functional_figures(context.samples, passed, context.settings.samples)


def run_samples(
    samples: list[Sample], tasks: dict[str, Task], jobs: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[bool]:
    """Returns for each sample whether its check passes; several sandboxes at a time, equal scripts run once."""

    def passes(sample: Sample) -> bool:
        setup, check = render_check(tasks[sample.rendering.task], sample.rendering)
        outcome = run_script(sample.script, setup=setup, check=check, limits=LIMITS)
        if outcome.status == SETUP_FAILED:
            raise RuntimeError(f"the setup of task {sample.rendering.task} fails: {outcome.stderr[-200:]}")
        return outcome.passed

    distinct = {(sample.rendering.prompt, sample.rendering.task, sample.script): sample for sample in samples}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        results = {}
        for done, (key, result) in enumerate(zip(distinct, pool.map(passes, distinct.values()), strict=True), 1):
            results[key] = result
            on_progress(done, len(distinct))
    return [results[sample.rendering.prompt, sample.rendering.task, sample.script] for sample in samples]


def _is_of(category: str, sample: Sample) -> bool:
    return sample.rendering.category == category


def has_unseen_values(sample: Sample) -> bool:
    """A prompt in words of training, of a task of training, with values that were not there."""
    return not sample.unseen_task and not sample.rendering.unseen_wording


def functional_figures(samples: list[Sample], passed: list[bool], per_prompt: int) -> PartResult:
    """pass@1 and pass@k: seen tasks with unseen values, seen tasks in unseen wordings and unseen tasks apart, and by category."""
    result = PartResult("function", TITLE)
    by_prompt: dict[tuple[str, str], list[tuple[Sample, bool]]] = defaultdict(list)
    for sample, good in zip(samples, passed, strict=True):
        by_prompt[sample.rendering.task, sample.rendering.prompt].append((sample, good))

    def figure(k: int, wanted: Callable[[Sample], bool], target: float | None = None) -> Figure:
        groups = {prompt_key(*key): [good for _, good in group] for key, group in by_prompt.items() if wanted(group[0][0])}
        chances = {key: [pass_at_k(len(group), sum(group), k)] for key, group in groups.items() if len(group) >= k}
        return mean_of(chances, target=target)

    for k in sorted({1, per_prompt}):
        result.figures[f"pass@{k}, seen tasks, unseen values"] = figure(k, has_unseen_values, 0.7 if k == 1 else None)
        if any(sample.rendering.unseen_wording for sample in samples):
            result.figures[f"pass@{k}, seen tasks, unseen wordings"] = figure(k, lambda s: s.rendering.unseen_wording)
        result.figures[f"pass@{k}, unseen tasks"] = figure(k, lambda s: s.unseen_task)
    for category in sorted({sample.rendering.category for sample in samples}):
        result.figures[f"pass@1, {category}"] = figure(1, partial(_is_of, category))
    for good in (True, False):
        chosen = [sample for sample, passes in zip(samples, passed, strict=True) if passes is good][:3]
        result.examples += [{"what": "passed" if good else "failed", "text": sample.script} for sample in chosen]
    return result
