"""`mlx-codegen sizes`: what each shipped configuration costs."""

from typing import Annotated

import typer


def sizes(
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences a batch. Default: each config's own.")] = None,
) -> None:
    """Print exact parameter counts, arithmetic per token and memory of every configuration in configs/."""
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen import backend
    from mlx_codegen.config import load_run_config, repository_folder
    from mlx_codegen.costs import model_costs

    table = Table("config", "family", "layers × width × heads", "vocabulary", "context", "parameters", "outside vocabulary")
    for title in ("training FLOPs/token", "batch", "weights", "optimizer", "gradients", "activations", "in all"):
        table.add_column(title, justify="right")
    streams = len(backend.compute_streams())
    for file in sorted(repository_folder("configs").glob("*.yaml")):
        config = load_run_config(file)
        model = config.model
        batches = [settings.batch_size for name in config.phase_names() if (settings := config.phase(name))]
        batch = batch_size or max(batches)
        costs = model_costs(model, batch, config.gradient_checkpointing, streams)
        memory = (costs.weights_bytes, costs.optimizer_bytes, costs.gradients_bytes, costs.activations_bytes)
        table.add_row(
            file.stem,
            model.family,
            f"{model.n_layers} × {model.d_model} × {model.n_heads}",
            f"{model.vocab_size:,}",
            f"{model.context_length:,}",
            f"{costs.parameters:,}",
            f"{costs.parameters_outside_vocabulary:,}",
            f"{costs.training_flops_per_token / 1e6:,.1f} M",
            str(batch),
            *(f"{size / 2**20:,.0f} MiB" for size in (*memory, costs.training_bytes)),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 240  # a pipe has no width of its own; rows must not be broken there
    console.print(table)
    console.print(
        f"Memory is for float32 training on this machine ({streams} compute stream{'s' if streams > 1 else ''}); activations "
        "are an estimate. They are given back while the gradients come, so the larger of both counts in all.",
        style="dim",
        highlight=False,
    )
