"""A trained model leaves as a Hugging Face folder, which appears whole or not at all.

config.json, generation_config.json     what the model is, and how to draw from it
model.safetensors                       weights; in shards of less than 16 MB where there is more
tokenizer.model                         our SentencePiece tokenizer
tokenizer.json, tokenizer_config.json   the same one for other libraries
mlx_codegen.json                        what we need to come back: sizes, progress, the run's configuration, checksums
README.md                               the model card
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from mlx_codegen.checkpoint import Checkpoint, flush_to_disk, load_checkpoint, write_safetensors
from mlx_codegen.config import RunConfig, build_run_config
from mlx_codegen.errors import UserError
from mlx_codegen.hub.card import model_card
from mlx_codegen.hub.folder import FACTS_FILE, FORMAT, TOKENIZER_FILE, load_folder, open_checkpoint, read_facts, sha256
from mlx_codegen.hub.layouts import Weights, hugging_face_config, hugging_face_weights, our_weights
from mlx_codegen.hub.quantize import dequantized, quantized
from mlx_codegen.hub.sample_loss import bits_per_byte, sample_documents
from mlx_codegen.hub.tokenizer_json import hugging_face_tokenizer, tokenizer_config
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.version import __version__

Dtype = Literal["float16", "bfloat16", "float32"]

SHARD_BYTES = 16_000_000
HEADER_BYTES = 100_000
"""Room in a shard for names and shapes."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    parameters: int
    weight_bytes: int
    weight_files: int
    bits_per_byte: tuple[float, float] | None
    """With quantising: on bundled text, before and after."""


def export_model(path: Path, folder: Path, dtype: Dtype = "float16", quantize: int | None = None) -> Exported:
    """Write a checkpoint (a file, or an exported folder) as a Hugging Face folder.

    `quantize` gives the matrices 4 or 8 bits; `dtype` is then the type of their scales and of the norms.
    Raises UserError for a checkpoint that cannot be read and for a folder that holds something; OSError for a full disk.
    """
    _refuse_occupied(folder)
    checkpoint = open_checkpoint(path)
    config = _config_json(checkpoint, dtype)
    weights = hugging_face_weights(_in_dtype(checkpoint, dtype), checkpoint.model_config)
    with whole_folder(folder) as partial:
        quantization = None
        if quantize is not None:
            weights, config, quantization = _quantized(partial, weights, config, checkpoint, quantize)
        _write_json(partial / "config.json", config)
        files = _write_weights(partial, weights, "pt" if quantization is None else "mlx")
        _write_tokenizer(partial, checkpoint)
        _write_json(partial / "generation_config.json", _generation_config(checkpoint.tokenizer))
        facts = _facts(checkpoint, path, dtype, quantization)
        _write_json(partial / FACTS_FILE, facts | {"checksums": {name: sha256(partial / name) for name in files}})
        parameters = sum(value.size for value in checkpoint.weights.values())
        weight_bytes = sum((partial / name).stat().st_size for name in files)
        card = _card(folder.resolve().name, checkpoint, facts, parameters, weight_bytes)
        (partial / "README.md").write_text(card, encoding="utf-8")
        load_folder(partial)  # what cannot be opened again is not handed out
    measured = None if quantization is None else (quantization["bits_per_byte_before"], quantization["bits_per_byte_after"])
    return Exported(folder, parameters, weight_bytes, len(files), measured)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place when all went well and vanishes when not."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.absolute().parent.glob(f".{folder.name}.*.partial"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            flush_to_disk(file)
        flush_to_disk(partial)
        partial.replace(folder)  # an empty folder gives way
        flush_to_disk(folder.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; export to a new folder, or remove this one")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is a {'link' if folder.is_symlink() else 'file'}; export to a new folder")


def _config_json(checkpoint: Checkpoint, dtype: Dtype) -> dict[str, Any]:
    tokenizer = checkpoint.tokenizer
    return {
        **hugging_face_config(checkpoint.model_config),
        "bos_token_id": tokenizer.end_of_text_id,
        "eos_token_id": tokenizer.end_of_text_id,
        "pad_token_id": tokenizer.padding_id,
        "torch_dtype": dtype,
    }


def _in_dtype(checkpoint: Checkpoint, dtype: Dtype) -> Weights:
    weights = {name: value.astype(getattr(mx, dtype)) for name, value in checkpoint.weights.items()}
    for name, value in weights.items():
        if not mx.isfinite(value).all().item():
            raise UserError(f"{name} holds values that are not finite in {dtype}; export with --dtype bfloat16 or float32")
    return weights


def _quantized(
    partial: Path, weights: Weights, config: dict[str, Any], checkpoint: Checkpoint, bits: int
) -> tuple[Weights, dict[str, Any], dict[str, Any]]:
    """Weights and `config.json` in few bits, and what that costs. Uses the folder for mlx-lm's reading, and empties it."""
    _write_json(partial / "config.json", config)
    write_safetensors(partial / "model.safetensors", weights, {"format": "pt"})
    weights, config = quantized(partial, bits)
    (partial / "model.safetensors").unlink()
    tokenizer, documents = checkpoint.tokenizer, sample_documents(checkpoint.progress.phase)
    before = bits_per_byte(checkpoint.build_model(), tokenizer, documents)
    read_back = our_weights(dequantized(weights, config["quantization"], checkpoint.model_config), checkpoint.model_config)
    after = bits_per_byte(replace(checkpoint, weights=read_back).build_model(), tokenizer, documents)
    quantization = {**config["quantization"], "bits_per_byte_before": before, "bits_per_byte_after": after}
    return weights, config, quantization


def _write_weights(partial: Path, weights: Weights, format: str) -> list[str]:
    """One file, or shards and their index. Returns the names of the files with weights."""
    shards = _shards(weights)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        places = {array: name for name, shard in zip(names, shards, strict=True) for array in shard}
        total = {"total_size": sum(value.nbytes for value in weights.values())}
        _write_json(partial / "model.safetensors.index.json", {"metadata": total, "weight_map": places})
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(partial / name, shard, {"format": format})
    return names


def _shards(weights: Weights) -> list[Weights]:
    """The arrays in their order, cut before a shard grows too large; an array that is too large itself has one alone."""
    shards: list[Weights] = [{}]
    size = 0
    for name, value in weights.items():
        if shards[-1] and size + value.nbytes > SHARD_BYTES - HEADER_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    return shards


def _write_tokenizer(partial: Path, checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    (partial / TOKENIZER_FILE).write_bytes(tokenizer.model_bytes)
    hugging_face_tokenizer(tokenizer).save(str(partial / "tokenizer.json"))
    chat = checkpoint.progress.phase != "language"  # a model that only continues text has no requests
    _write_json(partial / "tokenizer_config.json", tokenizer_config(checkpoint.model_config.context_length, chat=chat))


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """As `SamplingConfig` has it; control tokens are never drawn, and an answer does not begin with its end."""
    end = tokenizer.end_of_text_id
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": tokenizer.padding_id,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "max_new_tokens": 512,
        "suppress_tokens": [index for index in range(tokenizer.vocab_size) if tokenizer.is_control(index) and index != end],
        "begin_suppress_tokens": [end],
    }


def _facts(checkpoint: Checkpoint, path: Path, dtype: Dtype, quantization: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "model": checkpoint.model_config.model_dump(mode="json"),
        "run": _without_private_paths(checkpoint.config).model_dump(mode="json", exclude_none=True),
        "progress": checkpoint.progress.history()[-1],
        "earlier_progress": _earlier_progress(checkpoint, path),
        "tokenizer_hash": checkpoint.tokenizer.hash,
        "dtype": dtype,
        "quantization": quantization,
    }


def _without_private_paths(config: RunConfig) -> RunConfig:
    """Where on somebody's disk the data lay is nobody else's business: of absolute paths, the last part stays."""
    values = config.model_dump(mode="json", exclude_none=True)
    for phase in values["phases"].values():
        for source in phase["sources"]:
            if "path" in source and source["path"].startswith(("/", "~")):
                source["path"] = Path(source["path"]).name
    return build_run_config(values)


def _earlier_progress(checkpoint: Checkpoint, path: Path) -> list[dict[str, Any]]:
    """Of all that came before: in an exported folder's facts, or in the checkpoint, or (of version 0.1) beside it in its run."""
    if path.is_dir():
        earlier_facts = read_facts(path).get("earlier_progress")
        if not isinstance(earlier_facts, list):
            raise UserError(f"{path / FACTS_FILE}: has no earlier_progress; use the mlx_codegen that wrote it")
        return earlier_facts
    if checkpoint.progress.earlier:
        return checkpoint.progress.earlier
    language = path.parent.parent / "language" / "best.safetensors"
    if checkpoint.progress.phase != "code" or not language.is_file():
        return []
    earlier = load_checkpoint(language)
    return earlier.progress.history() if earlier.tokenizer.hash == checkpoint.tokenizer.hash else []


def _card(name: str, checkpoint: Checkpoint, facts: dict[str, Any], parameters: int, weight_bytes: int) -> str:
    return model_card(
        name,
        checkpoint.config,
        model=checkpoint.model_config,
        phase=checkpoint.progress.phase,
        progress=[*facts["earlier_progress"], facts["progress"]],
        parameters=parameters,
        weight_bytes=weight_bytes,
        **{name: facts[name] for name in ("version", "tokenizer_hash", "dtype", "quantization")},
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
