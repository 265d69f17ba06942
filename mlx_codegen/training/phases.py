"""A run: language first, then code from the language phase's best weights."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx

from mlx_codegen.checkpoint import Checkpoint, Progress, load_weights
from mlx_codegen.config import PhaseName, RunConfig, to_yaml
from mlx_codegen.data.batches import Batches, open_token_files, validation_batches
from mlx_codegen.data.mixed_batches import open_batches
from mlx_codegen.data.prepare import read_manifest
from mlx_codegen.data.token_check import check_token_files, unchanged_check
from mlx_codegen.errors import UserError
from mlx_codegen.hub.folder import open_checkpoint
from mlx_codegen.model import Transformer
from mlx_codegen.observer import Observer, Observers
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.distributed import Group
from mlx_codegen.training.lock import sole_user
from mlx_codegen.training.memory import check_memory, explaining_memory_errors
from mlx_codegen.training.metrics_log import MetricsLog, write_atomically
from mlx_codegen.training.preparation import prepare_run, prepare_together
from mlx_codegen.training.resume import Expected, checkpoint_to_resume, first_good
from mlx_codegen.training.run_folder import RunFolder, config_to_save, remove_abandoned
from mlx_codegen.training.trainer import PhaseData, Trainer


def train_run(
    folder: RunFolder,
    config: RunConfig,
    phases: Iterable[PhaseName],
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    resume: bool = False,
    init_from: Path | None = None,
    tokenizer_path: Path | None = None,
    group: Group | None = None,
) -> str:
    """Train phases of a run, one after the other. Returns `finished` or `interrupted`.

    `resume` continues what is in the folder; `init_from` starts from the weights (and tokenizer) of another
    checkpoint or exported folder;
    never both. In a `group`, each process trains on its rows of every batch; rank 0 writes and reports.
    Raises UserError for anything that the person can put right, also when another process is at work in the folder.
    """
    with sole_user(folder.path) if group is None or group.rank == 0 else nullcontext():
        return _train_run(folder, config, phases, observer, should_stop, resume, init_from, tokenizer_path, group)


def _train_run(
    folder: RunFolder,
    config: RunConfig,
    phases: Iterable[PhaseName],
    observer: Observer,
    should_stop: Callable[[], bool],
    resume: bool,
    init_from: Path | None,
    tokenizer_path: Path | None,
    group: Group | None,
) -> str:
    if group is None or group.rank == 0:
        remove_abandoned(folder)
    if resume and init_from is not None:
        raise UserError("--resume continues this run and --init-from starts a new one from other weights: give only one")
    start = open_checkpoint(init_from) if init_from is not None else None

    def prepare(observer: Observer) -> Tokenizer:
        return prepare_run(folder, config, phases, observer, start=start, tokenizer_path=tokenizer_path, resume=resume)

    tokenizer = prepare(observer) if group is None else prepare_together(group, folder, config, phases, prepare, observer)
    if group is None or group.rank == 0:
        observer = Observers([observer, MetricsLog(folder.metrics_file)])
    try:
        for phase in phases:
            reason = _train_phase(
                folder, config, phase, tokenizer, observer, should_stop, resume=resume, start=start, group=group
            )
            if reason == "interrupted":
                return "interrupted"
            start = None  # the next phase starts from this one
    finally:
        observer.close()
    return "finished"


def _train_phase(
    folder: RunFolder,
    config: RunConfig,
    phase: PhaseName,
    tokenizer: Tokenizer,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    resume: bool,
    start: Checkpoint | None,
    group: Group | None,
) -> str:
    data = _open_data(folder, config, phase, tokenizer, group)
    settings = config.phase(phase)
    assert settings is not None
    mx.random.seed(config.seed)
    model = Transformer(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}), config.gradient_checkpointing)
    last = folder.checkpoint(phase, "last")
    if group is not None and group.rank > 0:
        return _follow(
            group,
            Trainer(last.parent, config, settings, model, tokenizer, data, Progress(phase), observer, group=group),
            should_stop,
        )
    expected = Expected(phase, model.config, tokenizer.hash, data.fingerprint, config.seed)
    resumed = checkpoint_to_resume(folder.resumable(phase), expected, observer.on_message) if resume else None
    if resumed is not None:
        progress = resumed.progress
        planned_before, progress.total_steps = progress.total_steps, total_steps(config, phase, data.batches, progress)
        # Finished early (no more gain) stays finished, unless more steps are asked for now.
        if progress.finished and (progress.total_steps <= max(progress.step, planned_before)):
            observer.on_message(f"the {phase} phase is already finished ({progress.step:,} steps)")
            if group is not None:
                group.gather(None)
            return "finished"
        load_weights(model, resumed.weights, str(last))
    else:
        progress = Progress(phase, total_steps=total_steps(config, phase, data.batches), data_fingerprint=data.fingerprint)
        progress.sources = [source.description for source in settings.sources]
        before = _start_weights(folder, config, phase, model, tokenizer, start, observer)
        progress.earlier = before.history() if before is not None else []
    check_token_files(folder.data(phase), read_manifest(folder.data(phase)))
    check_memory(config, phase, observer.on_message)
    # Only now, when nothing can be refused any more, does the folder take the new settings.
    write_atomically(folder.config_file, to_yaml(config_to_save(folder, config, phase)).encode())
    trainer = Trainer(last.parent, config, settings, model, tokenizer, data, progress, observer, group=group)
    if resumed is not None:
        trainer.restore(resumed.trainer)
        progress.finished = False
    if group is not None:
        group.gather(asdict(progress))
        trainer.share_state(group)
    with explaining_memory_errors(config, phase):
        return trainer.run(should_stop)


def _follow(group: Group, trainer: Trainer, should_stop: Callable[[], bool]) -> str:
    """A phase on a rank other than 0, which reads no checkpoint: everything comes from rank 0."""
    progress = group.gather(None)[0]
    if progress is None:
        return "finished"
    trainer.progress = Progress(**progress)
    if trainer.progress.data_position:
        trainer.data.batches.restore(trainer.progress.data_position)
    trainer.share_state(group)
    return trainer.run(should_stop)


def _open_data(
    folder: RunFolder, config: RunConfig, phase: PhaseName, tokenizer: Tokenizer, group: Group | None = None
) -> PhaseData:
    settings = config.phase(phase)
    assert settings is not None
    context, batch = config.model.context_length, settings.batch_size
    held_out = open_token_files(folder.data(phase), "validation", {}, tokenizer.hash)
    share = {} if group is None else {"rank": group.rank, "ranks": group.size}
    manifest = read_manifest(folder.data(phase))
    return PhaseData(
        batches=open_batches(folder.data(phase), settings, tokenizer, context, config.seed, **share),
        validation=validation_batches(held_out, batch, context, settings.validation_tokens),
        fingerprint=manifest["fingerprint"],
        check_unchanged=unchanged_check(folder.data(phase), manifest),
    )


def total_steps(config: RunConfig, phase: PhaseName, batches: Batches, done: Progress | None = None) -> int:
    """Updates in a phase: given, or as many as the epochs need. Updates already done may have been of another size."""
    settings = config.phase(phase)
    assert settings is not None
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None and batches.tokens_per_epoch is not None
    step, tokens_seen = (0, 0) if done is None else (done.step, done.tokens_seen)
    tokens_left = max(0.0, settings.epochs * batches.tokens_per_epoch - tokens_seen)
    return max(1, step + math.ceil(tokens_left / (batches.tokens_per_batch * settings.gradient_accumulation)))


def _start_weights(
    folder: RunFolder,
    config: RunConfig,
    phase: PhaseName,
    model: Transformer,
    tokenizer: Tokenizer,
    start: Checkpoint | None,
    observer: Observer,
) -> Progress | None:
    """First weights of a phase: a given checkpoint's, the language phase's best, or random ones. Returns their progress."""
    if start is not None:
        load_weights(model, start.weights, "--init-from")
        return start.progress
    if phase == "language" or config.phases.language is None:
        return None
    best = folder.checkpoint("language", "best")
    if not best.exists():
        raise UserError(
            f"the code phase starts from the language phase, but {best} is not there; train it first "
            "(--phase language), give --init-from, or go without (--set phases.language=null)"
        )
    files = [best, *folder.resumable("language")]
    file, language, bad = first_good(files, lambda each, file: _check_start(each, file, tokenizer))
    assert language is not None
    for _, problem in bad:
        observer.on_message(f"{problem}; the phase's newest good checkpoint is used instead")
    load_weights(model, language.weights, str(file))
    observer.on_message(f"starting from {file} (step {language.progress.step:,})")
    return language.progress


def _check_start(language: Checkpoint, file: Path, tokenizer: Tokenizer) -> None:
    if language.progress.phase != "language":
        raise UserError(f"{file} is a checkpoint of the {language.progress.phase} phase, in the wrong place; put it right")
    if language.tokenizer.hash != tokenizer.hash:
        raise UserError(f"{file} was trained with another tokenizer ({language.tokenizer.hash}, not {tokenizer.hash})")
