"""`mlx-codegen sizes`: what each shipped configuration costs."""

from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.config import RunConfig, load_run_config, repository_folder

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_codegen.costs import Costs


def sizes(
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences a batch. Default: each config's own.")] = None,
) -> None:
    """Print exact parameter counts, arithmetic per token and memory of every configuration in configs/."""
    from rich.console import Console

    from mlx_codegen import backend
    from mlx_codegen.costs import model_costs

    streams = len(backend.compute_streams())
    rows = []
    for file in sorted(repository_folder("configs").glob("*.yaml")):
        config = load_run_config(file)
        batch = batch_size or _largest_batch(config)
        rows.append((file.stem, config, batch, model_costs(config.model, batch, config.gradient_checkpointing, streams)))
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a pipe has no width of its own; rows must not be broken there
    console.print(_model_table(rows))
    console.print(_memory_table(rows))
    console.print(
        f"float32 on {streams} compute stream{'s' if streams > 1 else ''}, as here. Activations are an estimate; they are "
        "given back while the gradients come, so the larger of the two counts in all.",
        style="dim",
        highlight=False,
    )


def _largest_batch(config: RunConfig) -> int:
    return max(settings.batch_size for name in config.phase_names() if (settings := config.phase(name)))


def _table(title: str, columns: tuple[str, ...], text_columns: int) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < text_columns else "right")
    return table


def _model_table(rows: "list[tuple[str, RunConfig, int, Costs]]") -> "Table":
    columns = ("config", "family", "shape", "parameters", "outside vocab.", "FLOPs/token")
    table = _table("Layers × width × heads, parameters, training FLOPs per token", columns, text_columns=3)
    for name, config, _, costs in rows:
        model = config.model
        table.add_row(
            name,
            model.family,
            f"{model.n_layers}×{model.d_model}×{model.n_heads}",
            f"{costs.parameters:,}",
            f"{costs.parameters_outside_vocabulary:,}",
            f"{costs.training_flops_per_token / 1e6:,.1f} M",
        )
    return table


def _memory_table(rows: "list[tuple[str, RunConfig, int, Costs]]") -> "Table":
    columns = ("config", "vocab.", "batch", "weights", "AdamW", "gradients", "activ.", "in all")
    table = _table("Memory for training, in MiB", columns, text_columns=1)
    for name, config, batch, costs in rows:
        parts = (costs.weights_bytes, costs.optimizer_bytes, costs.gradients_bytes, costs.activations_bytes)
        memory = [f"{size / 2**20:,.0f}" for size in (*parts, costs.training_bytes)]
        table.add_row(name, f"{config.model.vocab_size:,}", f"{batch}×{config.model.context_length:,}", *memory)
    return table
