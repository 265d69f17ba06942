"""A checkpoint is one safetensors file that stands on its own: weights, tokenizer, configuration, and for resuming
also optimizer, random state and position. Written beside itself, flushed and renamed, so it is there whole or not at
all; a checksum over every array tells an altered file from a good one.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_codegen.config import PHASES, ModelConfig, RunConfig, build_run_config
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer

FORMAT = "mlx_codegen checkpoint 1"


@dataclass
class Progress:
    """Where a phase stands, in plain numbers."""

    phase: str
    step: int = 0
    total_steps: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    finished: bool = False
    best_loss: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    data_position: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    validation: dict[str, float] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    """What it reads, in words."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """The progress of the phases and runs that its first weights came from, oldest first."""

    def __post_init__(self) -> None:
        """Raises ValueError for what a file that was edited by hand may hold."""
        if self.phase not in PHASES:
            raise ValueError(f"phase {self.phase!r}")
        for name in ("step", "total_steps", "tokens_seen", "train_seconds"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} {getattr(self, name)!r}")

    def history(self) -> list[dict[str, Any]]:
        """All that the weights went through, oldest first and this phase last, as plain values."""
        values = asdict(self)
        earlier: list[dict[str, Any]] = values.pop("earlier")
        return [*earlier, values]


@dataclass
class Checkpoint:
    """What a checkpoint file holds. `trainer` is empty in a weights-only file (`best.safetensors`)."""

    config: RunConfig
    model_config: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, mx.array]
    progress: Progress
    trainer: dict[str, Any]

    def build_model(self, gradient_checkpointing: bool = False) -> Transformer:
        """The model with these weights. Raises UserError if they do not fit the configuration."""
        model = Transformer(self.model_config, gradient_checkpointing)
        load_weights(model, self.weights, "the checkpoint")
        return model


def load_weights(model: Transformer, weights: dict[str, mx.array], origin: str) -> None:
    """Put weights into a model. Raises UserError naming the first array that is missing or of another shape."""
    for name, expected in tree_flatten(model.parameters()):
        if name not in weights:
            raise UserError(f"{origin} has no array {name}; it belongs to another model family or size")
        found = weights[name].shape
        if found != expected.shape:
            raise UserError(f"{origin}: {name} has shape {found}, the model needs {expected.shape}; it is of another size")
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())


def save_checkpoint(
    path: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    config: RunConfig,
    progress: Progress,
    trainer: dict[str, Any] | None = None,
    previous: Path | None = None,
) -> None:
    """Write a checkpoint atomically. With `trainer` (from `TrainStep.state`) it can be resumed from.

    The older file at `path` is kept as `previous`, if one is given. Raises OSError (no space, no permission) with both
    untouched.
    """
    arrays = {f"model.{name}": value for name, value in tree_flatten(model.parameters())}
    arrays["tokenizer"] = mx.array(np.frombuffer(tokenizer.model_bytes, np.uint8))
    if trainer is not None:
        arrays |= {f"trainer.{name}": value for name, value in tree_flatten(trainer)}
        arrays |= {f"random.{index}": value for index, value in enumerate(mx.random.state)}
    metadata = {
        "format": FORMAT,
        "config": config.model_dump_json(exclude_none=True),
        "model_config": model.config.model_dump_json(),
        "progress": json.dumps(asdict(progress)),
        "tokenizer_hash": tokenizer.hash,
        "checksum": checksum(arrays),
    }
    metadata["metadata_checksum"] = metadata_checksum(metadata)
    write_safetensors(path, arrays, metadata, previous)


def write_safetensors(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str], previous: Path | None = None) -> None:
    """Atomic write: temporary file beside `path`, flushed to disk, checked for completeness, renamed.

    Given `previous`, the older file at `path` gets that name first: killed in between, `previous` is there and whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{path.stem}.*.tmp.safetensors"):  # by a process that was killed while writing
        abandoned.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.safetensors")
    try:
        temporary.touch()  # MLX's error does not tell a folder that may not be written to from a full disk
        mx.save_safetensors(str(temporary), arrays, metadata)
        flush_to_disk(temporary)
        expected = sum(value.nbytes for value in arrays.values())
        if temporary.stat().st_size < expected:
            raise OSError(28, "No space left on device", str(path))
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        flush_to_disk(path.parent)
    except RuntimeError as error:  # MLX reports a failed write as a RuntimeError
        raise OSError(28, f"writing failed, probably no space left on device ({error})", str(path)) from None
    except OSError as error:
        error.filename = str(path)  # not the temporary's name, nor none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder after a rename in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(arrays: dict[str, mx.array]) -> str:
    """SHA-256 over names, types, shapes and bytes of all arrays, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def metadata_checksum(metadata: dict[str, str]) -> str:
    """SHA-256 over all other entries of the metadata."""
    described = {name: value for name, value in metadata.items() if name != "metadata_checksum"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _edited(metadata: dict[str, str]) -> bool:
    return metadata.get("metadata_checksum", metadata_checksum(metadata)) != metadata_checksum(metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises UserError for a missing, truncated, altered or foreign file."""
    arrays, metadata = _read_arrays(path)
    if checksum(arrays) != metadata.get("checksum") or _edited(metadata):
        raise UserError(f"{path}: damaged or edited (its checksum does not match); use another checkpoint of the run")
    try:
        return _unpacked(path, arrays, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: written by another version of mlx_codegen ({error}); use that one") from None


def _unpacked(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> Checkpoint:
    trainer = dict(tree_unflatten([(n.removeprefix("trainer."), v) for n, v in arrays.items() if n.startswith("trainer.")]))
    if trainer:
        trainer["random"] = [arrays[f"random.{index}"] for index in range(len(mx.random.state))]
    return Checkpoint(
        config=build_run_config(json.loads(metadata["config"]), origin=str(path)),
        model_config=ModelConfig.model_validate_json(metadata["model_config"]),
        tokenizer=Tokenizer(np.asarray(arrays["tokenizer"]).tobytes(), origin=str(path)),
        weights={n.removeprefix("model."): v for n, v in arrays.items() if n.startswith("model.")},
        progress=Progress(**json.loads(metadata["progress"])),
        trainer=trainer,
    )


def _read_arrays(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """All arrays and the metadata of one of our files; the safetensors library checks the header against the file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"no checkpoint {path}; train one: mlx-codegen train configs/nano.yaml")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:  # before its arrays: they may be of types that numpy does not know
                raise UserError(f"{path}: a safetensors file, but no checkpoint of mlx_codegen; give a file from runs/")
            arrays = {name: mx.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or no safetensors file ({error}); use another checkpoint of the run") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return arrays, metadata
