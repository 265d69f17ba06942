"""A Hugging Face folder that `mlx-codegen export` wrote, opened like one of our own checkpoints.

Nothing in it is trusted: names, shapes and checksums are compared before a model is built, and files that could run
code when opened (pickles) are refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_codegen.checkpoint import Checkpoint, Progress, load_checkpoint
from mlx_codegen.config import ModelConfig, build_run_config
from mlx_codegen.errors import UserError
from mlx_codegen.hub.layouts import MODEL_TYPES, Weights, hugging_face_config, hugging_face_weights, our_weights
from mlx_codegen.hub.quantize import dequantized
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer

FORMAT = "mlx_codegen model 1"
FACTS_FILE = "mlx_codegen.json"
"""What we need beside the common files: sizes, progress, the run's configuration, checksums."""
TOKENIZER_FILE = "tokenizer.model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """A trained model from one of our files, or from a folder that `mlx-codegen export` wrote (weights in float32).

    Raises UserError for what is missing, damaged, foreign, a pickle, or not made of finite numbers.
    """
    if path.suffix in PICKLES and not path.is_dir():
        raise UserError(_no_pickle(path))
    checkpoint = load_folder(path) if path.is_dir() else load_checkpoint(path)
    broken = [name for name, value in checkpoint.weights.items() if not mx.isfinite(value).all().item()]
    if broken:
        raise UserError(f"{path}: {broken[0]} holds NaN or infinity, so nothing it writes would mean anything; use another model")
    return checkpoint


def is_model_folder(path: Path) -> bool:
    """True for a folder in the Hugging Face layout, whole or not, ours or not."""
    return any((path / name).is_file() for name in ("config.json", FACTS_FILE, "pytorch_model.bin"))


def load_folder(folder: Path) -> Checkpoint:
    """Read and verify a folder; the result has float32 weights and nothing to resume from. Raises UserError."""
    _refuse_pickles(folder)
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        kind = f"a {config['model_type']} model" if "model_type" in config else "no language model of a known type"
        raise UserError(f"{folder}: {kind}; mlx-codegen opens its own: {', '.join(MODEL_TYPES)}")
    facts = read_facts(folder)
    try:
        model_config = ModelConfig.model_validate(facts["model"])
        progress = Progress(**facts["progress"], earlier=list(facts.get("earlier_progress") or []))
        run_config = build_run_config(facts["run"], origin=str(folder / FACTS_FILE))
        checksums, tokenizer_hash = dict(facts["checksums"]), str(facts["tokenizer_hash"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / FACTS_FILE}: written by another version of mlx_codegen ({error}); use that one") from None
    for name, value in hugging_face_config(model_config).items():
        if name != "torch_dtype" and config.get(name) != value:
            raise UserError(f"{folder}: config.json says {name} {config.get(name)}, the model has {value}; export it again")
    for name in checksums:
        if Path(name).name != name:
            raise UserError(f"{folder / FACTS_FILE}: names weights outside of the folder ({name}); export the model again")
    tokenizer = _tokenizer(folder, tokenizer_hash, model_config)
    weights = _weights(folder, model_config, config.get("quantization"), checksums)
    return Checkpoint(run_config, model_config, tokenizer, weights, progress, trainer={})


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of our own JSON file in a folder. Raises UserError where it is not there or not ours."""
    file = folder / FACTS_FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {FACTS_FILE}: only folders that mlx-codegen export wrote can be opened")
    facts = _read_json(file)
    if facts.get("format") != FORMAT:
        raise UserError(f"{file}: format {facts.get('format')!r}, expected {FORMAT!r}; use the mlx_codegen that wrote it")
    return facts


def sha256(file: Path) -> str:
    """Checksum of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}; copy the whole folder, or export the model again") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{file}: truncated or not JSON; copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds no settings; copy it again")
    return value


def _refuse_pickles(folder: Path) -> None:
    """Weights in a format that can run code, and none in ours."""
    pickles = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(_no_pickle(pickles[0]))


def _no_pickle(file: Path) -> str:
    return f"{file}: a pickle, which can run any code when it is opened; weights must be safetensors"


def _tokenizer(folder: Path, expected_hash: str, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    if tokenizer.hash != expected_hash or tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{folder / TOKENIZER_FILE} does not belong to the model: {tokenizer.vocab_size:,} pieces, hash {tokenizer.hash}; "
            f"the model was trained with {config.vocab_size:,} pieces, hash {expected_hash}"
        )
    return tokenizer


def _weights(folder: Path, config: ModelConfig, quantization: dict[str, Any] | None, checksums: dict[str, str]) -> Weights:
    """Our weights in float32. Read lazily: names and shapes are checked before the bytes."""
    theirs: Weights = {}
    for name in sorted(checksums):
        theirs |= _read_safetensors(folder / name, len(checksums))
    try:
        if quantization is not None:
            theirs = dequantized(theirs, quantization, config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: the quantised weights do not fit config.json ({error}); export it again") from None
    _check_shapes(folder, theirs, config)
    for name, checksum in checksums.items():
        if sha256(folder / name) != checksum:
            raise UserError(f"{folder / name}: damaged or edited (its checksum does not match); copy it again")
    weights = {name: value.astype(mx.float32) for name, value in our_weights(theirs, config).items()}
    mx.eval(weights)
    return weights


def _read_safetensors(file: Path, count: int) -> Weights:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        of = f"one of {count} files with weights" if count > 1 else "the file with the weights"
        raise UserError(f"{file.parent} has no {file.name}, {of}; copy the whole folder")
    try:
        with safe_open(file, framework="numpy"):  # compares the header with the file's length
            pass
        return dict(mx.load(str(file)))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{file}: truncated or no safetensors file ({error}); copy it again") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None


def _check_shapes(folder: Path, theirs: Weights, config: ModelConfig) -> None:
    model = Transformer(config)  # never computed: MLX knows shapes without
    for name, expected in hugging_face_weights(dict(tree_flatten(model.parameters())), config).items():
        if name not in theirs:
            raise UserError(f"{folder}: the weights have no array {name}; they are of another model, or a shard is missing")
        if theirs[name].shape != expected.shape:
            shape = theirs[name].shape
            raise UserError(f"{folder}: {name} has shape {shape}, the model needs {expected.shape}; it is of another size")
