"""What `generate --valid` gives for the test prompts, and what it costs."""

from mlx_codegen.evaluation.context import Context
from mlx_codegen.evaluation.figures import PartResult, mean_of, prompt_key
from mlx_codegen.evaluation.samples import sample_seed
from mlx_codegen.generation.checked import valid
from mlx_codegen.generation.verify import syntax_error


def measure_accepted(context: Context) -> PartResult:
    """Share of prompts that get valid bash, tokens written for each accepted text, and share of texts thrown away."""
    result = PartResult("accepted", "Answers of generate --valid")
    accepted: dict[str, list[float]] = {}
    tokens: dict[str, list[float]] = {}
    refused: dict[str, list[float]] = {}
    for number, rendering in enumerate(context.renderings, 1):
        seed, command = sample_seed(context.settings.seed, rendering, 0), rendering.kind == "command"
        chosen = valid(context.engine, rendering.prompt, seed, command=command, **context.sampling)
        # Parsed once more, so that a fault of the choosing would show
        good = chosen.best is not None and syntax_error(chosen.best.completion.text) is None
        key = prompt_key(rendering.task, rendering.prompt)
        accepted[key] = [float(good)]
        if good:
            tokens[key] = [float(chosen.tokens)]
        refused[key] = [chosen.failed / chosen.written]
        context.on_progress("accepting", number, len(context.renderings))
    result.figures["prompts that get valid bash"] = mean_of(accepted, target=1.0)
    result.figures["tokens written for an accepted text"] = mean_of(tokens, "tokens")
    result.figures["texts that did not parse"] = mean_of(refused)
    return result
