"""What `generate` answers where nobody sets anything: the best of eight texts. What that gives and costs beside one text."""

from functools import partial

from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import Figure, PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.functional import has_unseen_values, run_samples
from mlx_codegen.evaluation.samples import Sample, sample_seed
from mlx_codegen.evaluation.sandbox import why_unavailable
from mlx_codegen.evaluation.syntax import is_valid
from mlx_codegen.generation.checked import BATCH, Chosen, best_of

PROMPTS = 300
"""So many of the test prompts, evenly spaced: eight texts for each take a CPU several minutes."""
TITLE = f"What generate answers: the best of {BATCH}"


def measure_answers(context: Context) -> PartResult:
    """Share of prompts that get valid bash, and that get what was asked; tokens written for an answer."""
    step = max(1, round(len(context.renderings) / PROMPTS))
    result = PartResult("answers", TITLE)
    unseen_tasks = {task.name for task in context.tasks if task.held_out}
    samples: list[Sample] = []
    tokens: dict[str, list[float]] = {}
    refused: dict[str, list[float]] = {}
    chosen_prompts = context.renderings[::step]
    for number, rendering in enumerate(chosen_prompts, 1):
        seed, command = sample_seed(context.settings.seed, rendering, 0), rendering.kind == "command"
        chosen = best_of(context.engine, rendering.prompt, BATCH, seed, command=command, **context.sampling)
        samples.append(_answer(chosen, Sample(rendering, rendering.task in unseen_tasks, chosen.likeliest)))
        key = _key(samples[-1])
        tokens[key], refused[key] = [float(chosen.tokens)], [chosen.failed / chosen.written]
        context.on_progress("answering", number, len(chosen_prompts))
    # Parsed once more, so that a fault of the choosing would show
    result.figures["valid bash"] = mean_of({_key(sample): [float(is_valid(sample))] for sample in samples}, target=1.0)
    _add_function(result, context, samples)
    result.figures["tokens written for an answer"] = mean_of(tokens, "tokens")
    result.figures["texts that did not parse"] = mean_of(refused)
    if step > 1:
        result.notes.append(f"{len(chosen_prompts)} of the {len(context.renderings)} test prompts, evenly spaced")
    return result


def _answer(chosen: Chosen, likeliest: Sample) -> Sample:
    """What `generate` shows: the best that parses, else the likeliest."""
    if chosen.best is None:
        return likeliest
    return Sample(likeliest.rendering, likeliest.unseen_task, chosen.best.completion)


def _add_function(result: PartResult, context: Context, samples: list[Sample]) -> None:
    if reason := why_unavailable():
        result.notes.append(f"not run: no sandbox: {reason}")
        return
    by_name = {task.name: task for task in context.tasks}
    passed = run_samples(samples, by_name, context.settings.jobs, partial(context.on_progress, "running"))
    both = list(zip(samples, passed, strict=True))

    def share(wanted: list[tuple[Sample, bool]]) -> Figure:
        return mean_of({_key(sample): [float(good)] for sample, good in wanted})

    result.figures["right, seen tasks, unseen values"] = share([pair for pair in both if has_unseen_values(pair[0])])
    if wordings := [pair for pair in both if pair[0].rendering.unseen_wording and not pair[0].unseen_task]:
        result.figures["right, seen tasks, unseen wordings"] = share(wordings)
    result.figures["right, unseen tasks"] = share([pair for pair in both if pair[0].unseen_task])


def _key(sample: Sample) -> str:
    return prompt_key(sample.rendering.task, sample.rendering.prompt)
