"""What every part of the evaluation starts from: the model, the tasks, the settings, and texts that several parts share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mlx_codegen.data.tasks import Rendering, Task
from mlx_codegen.evaluation.samples import Sample, draw_samples, held_out_renderings
from mlx_codegen.generation.engine import Engine

if TYPE_CHECKING:
    from mlx_codegen.evaluation.training_texts import TrainingTexts


@dataclass(frozen=True)
class Settings:
    """What is measured, and how the texts are drawn."""

    parts: tuple[str, ...] = ("syntax", "function")
    samples: int = 4
    """Texts for each prompt."""
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    max_tokens: int = 300
    seed: int = 0
    seen: int = 1
    """Test prompts of each task that was trained on: so many with values that were not, so many in words that were not."""
    unseen: int = 3
    """Test prompts of each held-out task."""
    jobs: int = 2
    pairs: tuple[str, ...] = ()
    """Files of held-out pairs, instead of the sources of the run's code phase."""


@dataclass
class Context:
    """One evaluation. Texts are written when the first part asks for them, and only once."""

    engine: Engine
    tasks: list[Task]
    settings: Settings
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Hears what is being done, how much of it is done, and how much there is."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of `Engine.complete`."""
        settings = self.settings
        return {name: getattr(settings, name) for name in ("temperature", "top_k", "top_p", "max_tokens")}

    @cached_property
    def renderings(self) -> list[Rendering]:
        """Test prompts of the bundled tasks."""
        return held_out_renderings(self.tasks, self.settings.seen, self.settings.unseen, self.settings.seed)

    @cached_property
    def training_texts(self) -> "TrainingTexts":
        """What the model was trained on, as far as that is known."""
        from mlx_codegen.evaluation.training_texts import training_texts  # it knows contexts

        return training_texts(self.engine)

    @cached_property
    def samples(self) -> list[Sample]:
        """What the model writes for them."""
        unseen = {task.name for task in self.tasks if task.held_out}
        progress = partial(self.on_progress, "writing")
        settings = self.settings
        return draw_samples(self.engine, self.renderings, unseen, settings.samples, settings.seed, progress, **self.sampling)
