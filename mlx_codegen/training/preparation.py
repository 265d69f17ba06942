"""Everything before the first step: the tokenizer trained, the token files written, on every machine of a group the same."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mlx_codegen import backend
from mlx_codegen.checkpoint import Checkpoint
from mlx_codegen.config import PHASES, PhaseConfig, PhaseName, RunConfig, to_yaml
from mlx_codegen.data.prepare import prepare_phase, read_manifest, source_fingerprint, training_texts
from mlx_codegen.errors import UserError
from mlx_codegen.observer import Observer
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer
from mlx_codegen.training.distributed import Group
from mlx_codegen.training.metrics_log import write_atomically
from mlx_codegen.training.run_folder import RunFolder, refuse_other_model
from mlx_codegen.version import __version__


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
    refuse_other_model(folder, config)
    folder.path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, config, observer, start, tokenizer_path)
    for phase in phases:
        if not (resume and folder.resumable(phase)):  # a phase under way keeps its token files
            prepare_phase(folder.data(phase), config.phase(phase), tokenizer, config.seed, observer)  # type: ignore[arg-type]
    return tokenizer


def prepare_together(
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
