"""`mlx-codegen train`: both phases of a run, or one."""

import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.cli.runs import (
    CodeDataOption,
    ConfigArgument,
    LanguageDataOption,
    NameOption,
    SetOption,
    config_from_options,
    polite_stop,
    run_folder,
)
from mlx_codegen.config import PhaseName, RunConfig
from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.training.run_folder import RunFolder


class Phase(str, Enum):
    """Choices of --phase."""

    language = "language"
    code = "code"


def train(
    config: ConfigArgument,
    phase: Annotated[Phase | None, typer.Option(help="Only this phase. Default: all that the config has.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run where it stopped.")] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Start from the weights of this run folder, checkpoint or exported folder."),
    ] = None,
    name: NameOption = None,
    overrides: SetOption = None,
    language_data: LanguageDataOption = None,
    code_data: CodeDataOption = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use this tokenizer.model instead of training one.")
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Sequences a batch. auto: the largest that fits into memory, with gradient accumulation for the rest.",
        ),
    ] = None,
) -> None:
    """Train a model: English first, then code.

    Example: mlx-codegen train configs/tiny.yaml --language-data hub:roneneldan/TinyStories
    """
    from mlx_codegen.generation.engine import find_checkpoint
    from mlx_codegen.training.run_folder import saved_config

    folder = run_folder(name, config)
    if init_from is not None and init_from.is_dir():
        init_from = find_checkpoint(init_from)
    if resume:
        settings = saved_config(folder, overrides or ())
        if language_data or code_data:
            raise UserError("--resume goes on with the run's own data; give other data to a new run (--name)")
    else:
        settings = config_from_options(config, overrides, language_data, code_data)
    phases: list[PhaseName] = settings.phase_names() if phase is None else [phase.value]
    if phase is not None and settings.phase(phase.value) is None:
        raise UserError(f"{config} has no {phase.value} phase")
    if not resume:
        _refuse_trained_folder(folder, phases, config)
    if batch_size is not None:
        settings = _with_batches(settings, phases, batch_size)
    command = f"mlx-codegen train {config}" + (f" --name {name}" if name else "") + (f" --phase {phase.value}" if phase else "")
    train_with_display(folder, settings, phases, command, resume=resume, init_from=init_from, tokenizer_path=tokenizer)


def _with_batches(settings: RunConfig, phases: list[PhaseName], batch_size: str) -> RunConfig:
    from mlx_codegen.config import build_run_config
    from mlx_codegen.training.memory import fitted_batches

    if batch_size == "auto":
        return fitted_batches(settings, phases, lambda text: print(text, flush=True))
    if not batch_size.isdecimal() or int(batch_size) == 0:
        raise UserError(f"--batch-size {batch_size}: give a number of sequences from 1, or auto")
    values = settings.model_dump(mode="json", exclude_none=True)
    return build_run_config(values, [f"phases.{phase}.batch_size={batch_size}" for phase in phases])


def train_with_display(
    folder: "RunFolder",
    settings: RunConfig,
    phases: list[PhaseName],
    command: str,
    *,
    resume: bool = False,
    init_from: Path | None = None,
    tokenizer_path: Path | None = None,
) -> None:
    """Train under the live display. An interrupted run says how to go on (`command --resume`) and exits with 130.

    Started by `mlx.launch`, this process trains with the others of its job, and only rank 0 shows anything.
    """
    from mlx_codegen.cli.display import TrainingDisplay
    from mlx_codegen.training.distributed import joined_group
    from mlx_codegen.training.phases import train_run

    with joined_group(_end_with_the_others) as group:
        follows = group is not None and group.rank > 0
        display = TrainingDisplay(silent=follows)
        with display, polite_stop(display.on_message, display.in_phase) as should_stop:
            outcome = train_run(
                folder,
                settings,
                phases,
                display,
                should_stop,
                resume=resume,
                init_from=init_from,
                tokenizer_path=tokenizer_path,
                group=group,
            )
        # Before leaving the others: mlx.launch ends all as soon as one exits with 130.
        if outcome == "interrupted" and not follows:
            print(f"saved; go on with: {command} --resume", file=sys.stderr)
        elif not follows:
            print(f'trained; try it: mlx-codegen generate "Create a backup script" --model {folder.path}')
    if outcome == "interrupted":
        raise typer.Exit(130)


def _end_with_the_others(rank: int, host: str, why: str) -> None:
    """Another process of the job is gone. The main thread may wait for ever in a collective, so this ends all at once."""
    name = f"rank {rank} ({host})" if host else f"rank {rank}"
    try:
        os.write(2, f"error: {name} ended: {why}; what was saved is good: go on with --resume\n".encode())
    finally:
        os._exit(2)


def _refuse_trained_folder(folder: "RunFolder", phases: list[PhaseName], config: str) -> None:
    for phase in phases:
        if folder.resumable(phase) or folder.checkpoint(phase, "best").exists():
            raise UserError(
                f"{folder.path} already holds a trained {phase} phase; continue it with --resume, "
                "give the new run another --name, or remove the folder"
            )
