"""What `generate --valid` gives for the test prompts, and what it costs."""

from collections.abc import Callable
from typing import Any

from mlx_codegen.data.tasks import Rendering
from mlx_codegen.evaluation.figures import PartResult, mean_of
from mlx_codegen.evaluation.samples import sample_seed
from mlx_codegen.generation.checked import valid
from mlx_codegen.generation.engine import Engine
from mlx_codegen.generation.verify import syntax_error


def accepted_figures(
    engine: Engine,
    renderings: list[Rendering],
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **sampling: Any,
) -> PartResult:
    """Share of prompts that get valid bash, tokens written for each accepted text, and share of texts thrown away."""
    result = PartResult("accepted", "Answers of generate --valid")
    accepted, tokens, refused = [], [], []
    for number, rendering in enumerate(renderings, 1):
        chosen = valid(engine, rendering.prompt, sample_seed(seed, rendering, 0), command=rendering.kind == "command", **sampling)
        # Parsed once more, so that a fault of the choosing would show
        good = chosen.best is not None and syntax_error(chosen.best.completion.text) is None
        accepted.append([float(good)])
        if good:
            tokens.append([float(chosen.tokens)])
        refused.append([chosen.failed / chosen.written])
        on_progress(number, len(renderings))
    result.figures["prompts that get valid bash"] = mean_of(accepted, target=1.0)
    result.figures["tokens written for an accepted text"] = mean_of(tokens, "tokens")
    result.figures["texts that did not parse"] = mean_of(refused)
    return result
