"""Which checkpoint a phase goes on from: the newest that is whole and belongs here. A damaged one is put aside, with a word."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_codegen.checkpoint import Checkpoint, load_checkpoint
from mlx_codegen.config import ModelConfig, PhaseName
from mlx_codegen.errors import UserError

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Expected:
    """What a checkpoint must agree with to be gone on from. `model` has the vocabulary of the run's tokenizer."""

    phase: PhaseName
    model: ModelConfig
    tokenizer_hash: str
    data_fingerprint: str
    seed: int


def checkpoint_to_resume(files: Iterable[Path], expected: Expected, tell: Tell) -> Checkpoint | None:
    """The first good one of `files`, which are those that exist, newest first; None where there are none.

    A bad one before it is renamed, because the next save would make it the previous one and throw the good one away.
    Raises UserError, about the newest, where none is good.
    """
    file, checkpoint, bad = first_good(files, lambda checkpoint, file: check_same(checkpoint, expected, file))
    if checkpoint is None:
        return None
    for each, problem in bad:
        aside = each.with_name(each.name + ".damaged")
        each.replace(aside)
        tell(f"{problem}; kept as {aside.name}; going on from {file} (step {checkpoint.progress.step:,})")
    return checkpoint


def first_good(
    files: Iterable[Path], check: Callable[[Checkpoint, Path], None]
) -> tuple[Path | None, Checkpoint | None, list[tuple[Path, str]]]:
    """The first file that opens and passes `check`, and those before it with what is wrong with each.

    Raises UserError, about the first, where there are files and none is good.
    """
    bad: list[tuple[Path, UserError]] = []
    for file in files:
        try:
            checkpoint = load_checkpoint(file)
            check(checkpoint, file)
        except UserError as error:
            bad.append((file, error))
            continue
        return file, checkpoint, [(each, str(error).partition(";")[0]) for each, error in bad]
    if bad:
        raise bad[0][1]
    return None, None, []


def check_same(checkpoint: Checkpoint, expected: Expected, file: Path) -> None:
    """Raises UserError for a checkpoint of another phase, model, tokenizer, order of data, or without optimizer."""
    phase = checkpoint.progress.phase
    if phase != expected.phase:
        raise UserError(f"{file} is a checkpoint of the {phase} phase, in the wrong place; put the right one back")
    if not checkpoint.trainer:
        raise UserError(f"{file} holds weights only, nothing to resume from; put the right one back")
    if checkpoint.tokenizer.hash != expected.tokenizer_hash:
        raise UserError(
            f"{file} was trained with tokenizer {checkpoint.tokenizer.hash}, the run folder has {expected.tokenizer_hash}; "
            "put the old tokenizer back, or start another run with --name"
        )
    for name, value in expected.model:
        found = getattr(checkpoint.model_config, name)
        if found != value:
            raise UserError(f"{file} was trained with model.{name} {found}, the run's config.yaml says {value}; put it back")
    if checkpoint.progress.data_fingerprint != expected.data_fingerprint:
        raise UserError(
            f"the token files of {phase} changed since {file} was written; start another run with --name, "
            f"from these weights with --init-from {file}"
        )
    if checkpoint.config.seed != expected.seed:
        raise UserError(
            f"{file} was trained with seed {checkpoint.config.seed}, now it is {expected.seed}: its place in the data would "
            "mean another; set seed back"
        )
