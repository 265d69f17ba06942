"""What a model writes for the test prompts: the texts that the syntax and function parts look at."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_codegen.data.tasks import Rendering, Task, render
from mlx_codegen.errors import UserError
from mlx_codegen.generation.engine import Completion, Engine

BATCH = 32
DRAWS = 400
"""How often a rendering is drawn in search of one that belongs to the test part."""


@dataclass(frozen=True)
class Sample:
    """One text for one test prompt."""

    rendering: Rendering
    unseen_task: bool
    """True if no rendering of the task was ever trained on; else only the values are new."""
    completion: Completion

    @property
    def script(self) -> str:
        """The document as it would be run."""
        return self.completion.text


def held_out_renderings(tasks: list[Task], seen: int, unseen: int, seed: int) -> list[Rendering]:
    """Returns renderings of the test part: `unseen` of each held-out task; of each other task at most `seen` with unseen
    values, and at most `seen` in unseen words."""
    chosen: list[Rendering] = []
    for task in tasks:
        if task.held_out == "validation":
            continue
        rng = random.Random(f"{seed}/{task.name}/test")
        wanted = unseen if task.held_out else seen
        found: dict[str, Rendering] = {}
        for _ in range(DRAWS):
            rendering = render(task, rng)
            if rendering.part == "test":
                found.setdefault(rendering.prompt, rendering)
            if len(found) >= wanted:
                break
        chosen += list(found.values())[:wanted]
        if not task.held_out:
            chosen += _unseen_wordings(task, seen, seed)
    return chosen


def _unseen_wordings(task: Task, wanted: int, seed: int) -> list[Rendering]:
    rng = random.Random(f"{seed}/{task.name}/wording")
    found: dict[str, Rendering] = {}
    for _ in range(20 * wanted if task.unseen_prompts else 0):
        rendering = render(task, rng, unseen_wording=True)
        found.setdefault(rendering.prompt, rendering)
        if len(found) >= wanted:
            break
    return list(found.values())


def draw_samples(
    engine: Engine,
    renderings: list[Rendering],
    unseen_tasks: set[str],
    samples: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **sampling: Any,
) -> list[Sample]:
    """Draws `samples` texts for every rendering, in batches; the same seed gives the same texts."""
    # Prompts of one length together waste no padding, scripts and commands end at different times
    jobs = [(rendering, number) for rendering in renderings for number in range(samples)]
    order = sorted(range(len(jobs)), key=lambda i: (jobs[i][0].kind, len(jobs[i][0].prompt), i))
    drawn: dict[int, Completion] = {}
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        for kind in ("command", "script"):
            part = [place for place in places if jobs[place][0].kind == kind]
            if part:
                texts = _write(engine, [jobs[place] for place in part], kind == "command", seed, sampling)
                drawn |= dict(zip(part, texts, strict=True))
        on_progress(len(drawn), len(jobs))
    return [Sample(rendering, rendering.task in unseen_tasks, drawn[place]) for place, (rendering, _) in enumerate(jobs)]


def _write(
    engine: Engine, jobs: list[tuple[Rendering, int]], command: bool, seed: int, sampling: dict[str, Any]
) -> list[Completion]:
    """Texts for these prompts; a prompt that is longer than the model's window gets none, which is a failure of the model."""
    fits = [_fits(engine, rendering.prompt, command) for rendering, _ in jobs]
    wanted = [job for job, fit in zip(jobs, fits, strict=True) if fit]
    prompts, seeds = [rendering.prompt for rendering, _ in wanted], [sample_seed(seed, *job) for job in wanted]
    texts = iter(engine.complete(prompts, seeds, command=command, **sampling) if wanted else [])
    return [next(texts) if fit else Completion("", "", 0, False, 0.0) for fit in fits]


def _fits(engine: Engine, prompt: str, command: bool) -> bool:
    try:
        engine.encode_prompt(prompt, command=command)
    except UserError:
        return False
    return True


def sample_seed(seed: int, rendering: Rendering, number: int) -> int:
    """A seed that depends on the prompt and the sample's number, not on its place among others."""
    return random.Random(f"{seed}/{rendering.task}/{rendering.prompt}/{number}").getrandbits(32)
