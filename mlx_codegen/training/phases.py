"""A run: language first, then code from the language phase's best weights. Knows the run folder and its rules.

runs/<name>/config.yaml             the resolved configuration
            tokenizer/              tokenizer.model
            data/<phase>/           token files
            <phase>/                best.safetensors, last.safetensors, previous.safetensors
            metrics.jsonl           one line per step and evaluation
            lock                    while a process trains here
"""

import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from mlx_codegen import backend
from mlx_codegen.checkpoint import Checkpoint, Progress, load_weights
from mlx_codegen.config import PHASES, PhaseConfig, PhaseName, RunConfig, build_run_config, read_yaml, to_yaml
from mlx_codegen.data.batches import Batches, open_token_files, validation_batches
from mlx_codegen.data.mixed_batches import open_batches
from mlx_codegen.data.prepare import prepare_phase, read_manifest, source_fingerprint, training_texts
from mlx_codegen.data.token_check import check_token_files, unchanged_check
from mlx_codegen.errors import UserError
from mlx_codegen.hub.folder import open_checkpoint
from mlx_codegen.model import Transformer
from mlx_codegen.observer import Observer, Observers
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer
from mlx_codegen.training.distributed import Group
from mlx_codegen.training.lock import sole_user
from mlx_codegen.training.memory import check_memory, explaining_memory_errors
from mlx_codegen.training.metrics_log import MetricsLog, write_atomically
from mlx_codegen.training.resume import Expected, checkpoint_to_resume, first_good
from mlx_codegen.training.trainer import PhaseData, Trainer
from mlx_codegen.version import __version__

CHECKPOINTS = ("best", "last", "previous")


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in one run's folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def tokenizer_file(self) -> Path:
        """SentencePiece model."""
        return self.path / "tokenizer" / "tokenizer.model"

    @property
    def tokenizer_inputs_file(self) -> Path:
        """What the tokenizer was made from, to tell whether it is still up to date."""
        return self.path / "tokenizer" / "inputs.txt"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per step and evaluation."""
        return self.path / "metrics.jsonl"

    def data(self, phase: PhaseName) -> Path:
        """Token files of a phase."""
        return self.path / "data" / phase

    def checkpoint(self, phase: PhaseName, name: str) -> Path:
        """`best`, `last` or `previous` checkpoint of a phase."""
        return self.path / phase / f"{name}.safetensors"

    def holds_checkpoints(self) -> bool:
        """True once anything was trained here."""
        return any(self.checkpoint(phase, name).exists() for phase in PHASES for name in CHECKPOINTS)

    def resumable(self, phase: PhaseName) -> list[Path]:
        """The checkpoints that are there with everything to go on from, newest first."""
        return [file for name in ("last", "previous") if (file := self.checkpoint(phase, name)).exists()]


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
        _remove_abandoned(folder)
    if resume and init_from is not None:
        raise UserError("--resume continues this run and --init-from starts a new one from other weights: give only one")
    start = open_checkpoint(init_from) if init_from is not None else None

    def prepare(observer: Observer) -> Tokenizer:
        return prepare_run(folder, config, phases, observer, start=start, tokenizer_path=tokenizer_path, resume=resume)

    tokenizer = prepare(observer) if group is None else _prepare_together(group, folder, config, phases, prepare, observer)
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


def prepare_run(
    folder: RunFolder,
    config: RunConfig,
    phases: Iterable[PhaseName],
    observer: Observer,
    *,
    start: Checkpoint | None = None,
    tokenizer_path: Path | None = None,
    resume: bool = False,
) -> Tokenizer:
    """Everything before training: tokenizer trained, token files written; reused where unchanged."""
    _refuse_other_model(folder, config)
    folder.path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, config, observer, start, tokenizer_path)
    for phase in phases:
        if not (resume and folder.resumable(phase)):  # a phase under way keeps its token files
            prepare_phase(folder.data(phase), config.phase(phase), tokenizer, config.seed, observer)  # type: ignore[arg-type]
    return tokenizer


def _remove_abandoned(folder: RunFolder) -> None:
    """Files half written by a process that was killed: whoever holds the lock is the only one at work."""
    for file in folder.path.rglob(".*.tmp*"):
        file.unlink(missing_ok=True)
    for partial in folder.path.glob("data/*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _prepare_together(
    group: Group,
    folder: RunFolder,
    config: RunConfig,
    phases: Iterable[PhaseName],
    prepare: Callable[[Observer], Tokenizer],
    observer: Observer,
) -> Tokenizer:
    """`prepare` once on each disk, then on all others, which find everything there; refuse what does not fit together."""
    here = len(group.ranks_on_this_machine)
    backend.share_cores(here)
    facts = {
        "version": f"mlx_codegen {__version__}, MLX {importlib.metadata.version('mlx')}",
        "program": _short_hash(b"".join(file.read_bytes() for file in sorted(Path(__file__).parents[1].rglob("*.py")))),
        "configuration": _short_hash(f"{list(phases)} {config.model_dump_json()}".encode()),
        "precision": backend.resolve_precision(config.precision),
    }
    group.check_same(facts, "run the same program, options and --set precision=... everywhere")
    observer.on_message(f"{group.size} processes ({here} on this machine), each with batch_size rows of every step")
    leads = group.leads(folder.path)
    if leads:
        tokenizer = prepare(observer)
        if group.rank > 0:  # on a disk of its own: what --resume reads there
            write_atomically(folder.config_file, to_yaml(config).encode())
    group.barrier()
    if not leads:
        tokenizer = prepare(observer)
    manifests = [read_manifest(folder.data(phase))["sources"] for phase in phases]
    contents = [[(source["name"], source["counts"]) for source in sources] for sources in manifests]
    found = {"tokenizer": tokenizer.hash, "set of token files": _short_hash(json.dumps(contents).encode())}
    group.check_same(found, f"copy {folder.path} from rank 0's machine to the others, without its checkpoints")
    return tokenizer


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def saved_config(folder: RunFolder, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration that a run was started with, overrides applied. Raises UserError where there is no run.

    Model and tokenizer cannot change under a run; everything else can.
    """
    if not folder.config_file.exists():
        raise UserError(f"no run in {folder.path} to resume; leave --resume out to start one")
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    changed = build_run_config(read_yaml(folder.config_file), overrides, origin="--set")
    if changed.model != saved.model or changed.tokenizer != saved.tokenizer:
        raise UserError(f"{folder.path}: --set cannot change model or tokenizer of a run that has begun; use another --name")
    return changed


def _record(folder: RunFolder, config: RunConfig, phase: PhaseName) -> RunConfig:
    """The configuration to save: of a phase trained before and not now, what it was trained with."""
    if not folder.config_file.exists():
        return config
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    trained = [name for name in PHASES if name != phase and folder.checkpoint(name, "best").exists()]
    settings = config.phases.model_copy(update={name: saved.phase(name) for name in trained})
    return config.model_copy(update={"phases": settings})


def _refuse_other_model(folder: RunFolder, config: RunConfig) -> None:
    """A run's phases share one model and one tokenizer. Checked before anything in the folder is changed."""
    if not folder.holds_checkpoints() or not folder.config_file.exists():
        return
    saved = build_run_config(read_yaml(folder.config_file), origin=str(folder.config_file))
    if (saved.model, saved.tokenizer) != (config.model, config.tokenizer):
        raise UserError(f"{folder.path} holds a model of another shape or tokenizer; give this run another --name")


def _tokenizer(
    folder: RunFolder, config: RunConfig, observer: Observer, start: Checkpoint | None, given: Path | None
) -> Tokenizer:
    """A given tokenizer, the starting checkpoint's, the folder's, or a new one trained on all phases."""
    existing = Tokenizer.load(folder.tokenizer_file) if folder.tokenizer_file.exists() else None
    if given is not None or start is not None:
        tokenizer = Tokenizer.load(given) if given is not None else start.tokenizer  # type: ignore[union-attr]
        _check_tokenizer(folder, tokenizer, existing, start)
        inputs = tokenizer.hash
    else:
        if existing is not None and folder.holds_checkpoints():
            return existing
        inputs = _tokenizer_inputs(config)
        if existing is not None and _read_text(folder.tokenizer_inputs_file) == inputs:
            return existing
        tokenizer = _train_tokenizer(config, observer)
    folder.tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.tokenizer_file, tokenizer.model_bytes)
    write_atomically(folder.tokenizer_inputs_file, inputs.encode())
    return tokenizer


def _check_tokenizer(folder: RunFolder, tokenizer: Tokenizer, existing: Tokenizer | None, start: Checkpoint | None) -> None:
    if start is not None and start.tokenizer.hash != tokenizer.hash:
        raise UserError(f"--init-from was trained with tokenizer {start.tokenizer.hash}, --tokenizer is {tokenizer.hash}")
    if existing is not None and folder.holds_checkpoints() and existing.hash != tokenizer.hash:
        raise UserError(
            f"{folder.path} was trained with tokenizer {existing.hash}, not {tokenizer.hash}; give this run another --name"
        )


def _train_tokenizer(config: RunConfig, observer: Observer) -> Tokenizer:
    observer.on_message("training the tokenizer")
    texts = training_texts(_phase_settings(config), config.tokenizer.training_bytes, config.seed)
    tokenizer = train_tokenizer(texts, config.tokenizer, config.model.vocab_size)
    if config.tokenizer.type == "bpe" and tokenizer.vocab_size < config.model.vocab_size:
        observer.on_message(
            f"the corpus carries {tokenizer.vocab_size} of the {config.model.vocab_size} pieces asked for; "
            "the model gets that many"
        )
    return tokenizer


def _tokenizer_inputs(config: RunConfig) -> str:
    """A name for everything that a tokenizer is made from: its settings, and the sources with their files."""
    texts = [
        [settings.validation_fraction, *(source_fingerprint(source) for source in settings.sources)]
        for settings in _phase_settings(config)
    ]
    inputs = [config.tokenizer.model_dump(), config.model.vocab_size, config.seed, texts]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _phase_settings(config: RunConfig) -> list[PhaseConfig]:
    return [settings for name in PHASES if (settings := config.phase(name)) is not None]


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


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
        _start_weights(folder, config, phase, model, tokenizer, start, observer)
    check_token_files(folder.data(phase), read_manifest(folder.data(phase)))
    check_memory(config, phase, observer.on_message)
    # Only now, when nothing can be refused any more, does the folder take the new settings.
    write_atomically(folder.config_file, to_yaml(_record(folder, config, phase)).encode())
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
) -> None:
    """First weights of a phase: a given checkpoint's, the language phase's best, or random ones."""
    if start is not None:
        load_weights(model, start.weights, "--init-from")
        return
    if phase == "language" or config.phases.language is None:
        return
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


def _check_start(language: Checkpoint, file: Path, tokenizer: Tokenizer) -> None:
    if language.progress.phase != "language":
        raise UserError(f"{file} is a checkpoint of the {language.progress.phase} phase, in the wrong place; put it right")
    if language.tokenizer.hash != tokenizer.hash:
        raise UserError(f"{file} was trained with another tokenizer ({language.tokenizer.hash}, not {tokenizer.hash})")
