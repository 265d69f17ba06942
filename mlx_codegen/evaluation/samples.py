"""What a model writes for the test prompts: the texts that the syntax and function parts look at."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_codegen.data.tasks import Rendering, Task, render
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


def test_renderings(tasks: list[Task], seen: int, unseen: int, seed: int) -> list[Rendering]:
    """Returns renderings of the test part, `unseen` of each held-out task and at most `seen` of each other task."""
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
    return chosen


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
                prompts = [jobs[place][0].prompt for place in part]
                seeds = [sample_seed(seed, *jobs[place]) for place in part]
                texts = engine.complete(prompts, seeds, command=kind == "command", **sampling)
                drawn |= dict(zip(part, texts, strict=True))
        on_progress(len(drawn), len(jobs))
    return [Sample(rendering, rendering.task in unseen_tasks, drawn[place]) for place, (rendering, _) in enumerate(jobs)]


def sample_seed(seed: int, rendering: Rendering, number: int) -> int:
    """A seed that depends on the prompt and the sample's number, not on its place among others."""
    return random.Random(f"{seed}/{rendering.task}/{rendering.prompt}/{number}").getrandbits(32)
