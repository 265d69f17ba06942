"""`mlx-codegen train`: both phases of a run, or one."""

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
    from mlx_codegen.training.phases import RunFolder


class Phase(str, Enum):
    """Choices of --phase."""

    language = "language"
    code = "code"


def train(
    config: ConfigArgument,
    phase: Annotated[Phase | None, typer.Option(help="Only this phase. Default: all that the config has.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run where it stopped.")] = False,
    init_from: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Start from the weights of this checkpoint or exported folder.")
    ] = None,
    name: NameOption = None,
    overrides: SetOption = None,
    language_data: LanguageDataOption = None,
    code_data: CodeDataOption = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use this tokenizer.model instead of training one.")
    ] = None,
) -> None:
    """Train a model: English first, then code.

    Example: mlx-codegen train configs/tiny.yaml --language-data hub:roneneldan/TinyStories
    """
    from mlx_codegen.training.phases import saved_config

    folder = run_folder(name, config)
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
    command = f"mlx-codegen train {config}" + (f" --name {name}" if name else "") + (f" --phase {phase.value}" if phase else "")
    train_with_display(folder, settings, phases, command, resume=resume, init_from=init_from, tokenizer_path=tokenizer)


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
    """Train under the live display. An interrupted run says how to go on (`command --resume`) and exits with 130."""
    from mlx_codegen.cli.display import TrainingDisplay
    from mlx_codegen.training.phases import train_run

    display = TrainingDisplay()
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
        )
    if outcome == "interrupted":
        print(f"saved; go on with: {command} --resume", file=sys.stderr)
        raise typer.Exit(130)
    print(f'trained; try it: mlx-codegen generate "Create a backup script" --model {folder.path}')


def _refuse_trained_folder(folder: "RunFolder", phases: list[PhaseName], config: str) -> None:
    for phase in phases:
        if folder.checkpoint(phase, "last").exists() or folder.checkpoint(phase, "best").exists():
            raise UserError(
                f"{folder.path} already holds a trained {phase} phase; continue it with --resume, "
                "give the new run another --name, or remove the folder"
            )
