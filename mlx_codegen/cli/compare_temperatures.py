"""`mlx-codegen compare-temperatures`: one request at several temperatures, side by side."""

import secrets
from typing import Annotated

import typer

from mlx_codegen.cli.generate import MaxTokensOption, ModelOption, SeedOption, TopKOption, TopPOption
from mlx_codegen.errors import UserError

NARROWEST_COLUMN = 36


def compare_temperatures(
    prompt: Annotated[str, typer.Argument(help='What you want, e.g. "Create a backup script".')],
    temperatures: Annotated[list[float] | None, typer.Argument(help="Default: 0.3 0.8 1.5.")] = None,
    model: ModelOption = None,
    top_k: TopKOption = 50,
    top_p: TopPOption = 0.9,
    max_tokens: MaxTokensOption = 200,
    seed: SeedOption = None,
    command: Annotated[bool, typer.Option("--command", help="Ask for a one-line command instead of a script.")] = False,
) -> None:
    """Show what temperature does: the same request and seed in columns.

    Example: mlx-codegen compare-temperatures "Create a backup script" 0.3 0.8 1.5
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlx_codegen.cli.answer import visible_controls
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load
    from mlx_codegen.generation.prompts import unescape_newlines
    from mlx_codegen.generation.verify import syntax_error
    from mlx_codegen.hub.releases import default_model

    chosen = temperatures or [0.3, 0.8, 1.5]
    if len(chosen) > 8:
        raise UserError("eight temperatures are the most that fit side by side")
    seed = secrets.randbits(32) if seed is None else seed
    settings = [
        check_sampling({"temperature": t, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}) for t in chosen
    ]
    engine = load(find_checkpoint(model or default_model()))
    request = unescape_newlines(prompt)
    texts = [engine.generate(request, command=command, **each.model_dump()) for each in settings]
    verdicts = ["" if engine.phase == "language" else "not valid bash" if syntax_error(t) else "valid bash" for t in texts]
    titles = [f"{t:g}" + (f" · {verdict}" if verdict else "") for t, verdict in zip(chosen, verdicts, strict=True)]
    bodies = [Text("\n".join(visible_controls(line) for line in text.rstrip("\n").split("\n"))) for text in texts]
    console = Console(highlight=False)
    across = max(1, min(len(chosen), console.width // NARROWEST_COLUMN))
    for start in range(0, len(chosen), across):  # what does not fit side by side goes below
        table = Table(*titles[start : start + across], width=console.width, show_lines=False)
        table.add_row(*bodies[start : start + across])
        console.print(table)
    console.print(f"seed {seed} · {engine.origin}", style="dim", soft_wrap=True)
