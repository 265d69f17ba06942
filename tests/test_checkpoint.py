"""A checkpoint is there whole or not at all, and an altered one is refused with one clear line."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_run import phase_settings, save_model, state_on_disk, tiny_config, tiny_tokenizer

from mlx_codegen.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, write_safetensors
from mlx_codegen.config import ModelConfig
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import Tokenizer
from mlx_codegen.training.run_folder import RunFolder
from mlx_codegen.training.step import TrainStep

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tokenizer(prepared_run: Path) -> Tokenizer:
    return tiny_tokenizer(RunFolder(prepared_run))


@pytest.fixture
def file(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A good checkpoint of an untrained model, with everything that resuming needs."""
    config = tiny_config()
    model = Transformer(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    step = TrainStep(model, phase_settings(), "float32", [mx.default_stream(mx.cpu)], compiled=False)
    progress = Progress("code", step=7, total_steps=9, tokens_seen=11, best_loss=1.25, data_position={"epoch": 2, "window": 5})
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, tokenizer, config, progress, step.state())
    return path


def split_header(content: bytes) -> tuple[dict[str, object], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_header(header: dict[str, object], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_round_trip_is_exact(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Weights, optimizer, loss scale, random state, position, configuration and tokenizer come back bit for bit."""
    config = tiny_config("seed=9")
    model = Transformer(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    step = TrainStep(model, phase_settings(), "float16", [mx.default_stream(mx.cpu)], compiled=False)
    tokens = mx.random.randint(0, tokenizer.vocab_size, (2, 33))
    mx.eval(step([tokens], 1e-3), *step.arrays())
    progress = Progress("language", 3, 10, 192, 1.5, False, 2.0, 2, 1, {"epoch": 1, "window": 4}, "abc", {"loss": 2.0})
    path = tmp_path / "deep" / "er" / "last.safetensors"
    save_checkpoint(path, model, tokenizer, config, progress, step.state())
    loaded = load_checkpoint(path)
    assert loaded.config == config
    assert loaded.model_config == model.config
    assert loaded.tokenizer.model_bytes == tokenizer.model_bytes
    assert loaded.progress == progress
    ours = dict(tree_flatten(model.parameters()))
    assert loaded.weights.keys() == ours.keys()
    assert all(mx.array_equal(loaded.weights[name], value).item() for name, value in ours.items())
    state, random = dict(tree_flatten(step.state())), loaded.trainer.pop("random")
    theirs = dict(tree_flatten(loaded.trainer))
    assert theirs.keys() == state.keys()
    assert all(theirs[n].dtype == v.dtype and mx.array_equal(theirs[n], v).item() for n, v in state.items())
    assert mx.array_equal(random[0], mx.random.state[0]).item()
    rebuilt = loaded.build_model().eval()
    assert mx.array_equal(rebuilt(tokens[:, :-1]), model.eval()(tokens[:, :-1])).item()


def test_best_checkpoint_holds_weights_only(file: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """`best` is for use, not for resuming: a third of the size."""
    model = load_checkpoint(file).build_model()
    best = tmp_path / "best.safetensors"
    save_model(best, model, tokenizer)
    assert load_checkpoint(best).trainer == {}
    assert best.stat().st_size < 0.5 * file.stat().st_size


def test_any_safetensors_reader_opens_it(file: Path) -> None:
    """Nothing pickled, nothing private: MLX reads the arrays, and the metadata is plain JSON."""
    arrays, metadata = mx.load(str(file), return_metadata=True)
    assert "model.token_embedding.weight" in arrays
    assert json.loads(metadata["progress"])["step"] == 7
    assert len(metadata["tokenizer_hash"]) == 16


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _one_byte_short(content: bytes) -> bytes:
    return content[:-1]


def _cut_in_header(content: bytes) -> bytes:
    return content[:100]


def _empty(content: bytes) -> bytes:
    return b""


def _longer(content: bytes) -> bytes:
    return content + b"\0" * 64


def _bit_in_first_array(content: bytes) -> bytes:
    position = len(content) - len(split_header(content)[1])
    return _flip(content, position + 5)


def _bit_in_last_array(content: bytes) -> bytes:
    return _flip(content, len(content) - 1)


def _flip(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


def _header_length(content: bytes) -> bytes:
    return _flip(content, 5)


def _array_renamed(content: bytes) -> bytes:
    return content.replace(b"model.final_norm.weight", b"model.final_norm.weighs", 1)


def _type_changed(content: bytes) -> bytes:
    return content.replace(b'"F32"', b'"I32"', 1)


def _learning_rate_edited(content: bytes) -> bytes:
    header, data = split_header(content)
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    assert "0.01" in metadata["config"]
    metadata["config"] = metadata["config"].replace("0.01", "0.02")
    return join_header(header, data)


def _progress_edited(content: bytes) -> bytes:
    header, data = split_header(content)
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    metadata["progress"] = "not JSON"
    return join_header(header, data)


def _metadata_removed(content: bytes) -> bytes:
    header, data = split_header(content)
    del header["__metadata__"]
    return join_header(header, data)


def _text(content: bytes) -> bytes:
    return b"#!/bin/bash\necho this is a script\n" * 40


DAMAGES = [
    _truncated, _one_byte_short, _cut_in_header, _empty, _longer, _bit_in_first_array, _bit_in_last_array, _header_length,
    _array_renamed, _type_changed, _learning_rate_edited, _progress_edited, _metadata_removed, _text,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_file_is_refused_by_name(file: Path, damage: Callable[[bytes], bytes]) -> None:
    """Never a wrong model without a word, never a traceback: one line with the file's name."""
    content = file.read_bytes()
    damaged = damage(content)
    assert damaged != content
    file.write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        load_checkpoint(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_bit_flipped_anywhere_is_found_or_harmless(file: Path) -> None:
    """Header, metadata, arrays: after any single flip the file is refused, or everything in it is as it was."""
    content = file.read_bytes()
    header_end = len(content) - len(split_header(content)[1])
    original = state_on_disk(file)
    config = load_checkpoint(file).config
    random = np.random.default_rng(0)
    positions = [*random.integers(0, header_end, 60), *random.integers(header_end, len(content), 20)]
    refused = 0
    for position in positions:
        file.write_bytes(_flip(content, int(position)))
        try:
            loaded = load_checkpoint(file)
        except UserError:
            refused += 1
            continue
        assert (state_on_disk(file), loaded.config) == (original, config), f"byte {position}"
    assert refused > 0.9 * len(positions)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_foreign_safetensors_is_refused(tmp_path: Path, dtype: mx.Dtype) -> None:
    """A model of somebody else, also of a type that numpy does not know."""
    path = tmp_path / "foreign.safetensors"
    mx.save_safetensors(str(path), {"weight": mx.zeros((4, 4), dtype)}, {"format": "pt"})
    with pytest.raises(UserError, match="no checkpoint of mlx_codegen"):
        load_checkpoint(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """Both name the path and the command that makes one."""
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"no checkpoint .*train"):
            load_checkpoint(path)


def test_weights_of_another_size_or_family_are_refused(file: Path) -> None:
    """The first array that does not fit is named, with both shapes; nothing is loaded half."""
    checkpoint = load_checkpoint(file)
    wider = checkpoint.model_config.model_copy(update={"d_model": 64})
    with pytest.raises(UserError, match=r"shape \(4\d\d, 32\), the model needs \(4\d\d, 64\)"):
        load_weights(Transformer(wider), checkpoint.weights, "x")
    with pytest.raises(UserError, match=r"no array .*another model family or size"):
        load_weights(Transformer(ModelConfig(**{**checkpoint.model_config.model_dump(), "n_layers": 3})), checkpoint.weights, "x")


def test_the_old_file_is_replaced_and_not_written_over(file: Path, tokenizer: Tokenizer) -> None:
    """Whoever has the old file open reads it to its end: there is no moment at which half of the new one is there."""
    before = file.read_bytes()
    with file.open("rb") as reader:
        save_model(file, load_checkpoint(file).build_model(), tokenizer)
        assert reader.read() == before
    assert file.read_bytes() != before


def test_saving_leaves_no_temporary_file(file: Path) -> None:
    """Beside the checkpoint there is nothing."""
    assert list(file.parent.iterdir()) == [file]


WRITE_WITH_LIMIT = """
import mlx_codegen, resource, sys
import mlx.core as mx
from pathlib import Path
from mlx_codegen.checkpoint import write_safetensors
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_safetensors(Path(sys.argv[1]), {"weight": mx.ones((300, 300))}, {"format": "x"})
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("limit", [0, 50, 200_000])
def test_failed_write_keeps_the_older_file(tmp_path: Path, limit: int) -> None:
    """Space runs out before the first byte, in the header, or in the data: the old file stays, no temporary is left."""
    path = tmp_path / "last.safetensors"
    write_safetensors(path, {"weight": mx.zeros((2, 2))}, {"format": "x"})
    before = path.read_bytes()
    command = [sys.executable, "-c", WRITE_WITH_LIMIT, str(path), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"28 {path}\n"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_in_training_is_one_line_and_nothing_is_lost(trained_copy: RunFolder, tmp_path: Path) -> None:
    """Through the command line: exit status 2, the file named, all checkpoints as they were."""
    files = sorted(trained_copy.path.rglob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    largest = max(file.stat().st_size for file in trained_copy.path.rglob("*") if file.suffix != ".safetensors")

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 50_000, largest + 50_000))

    more = ["--set", "phases.language.steps=30", "--resume"]
    command = [sys.executable, "-m", "mlx_codegen", "train", "tiny", "--phase", "language", *more]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left on disk while writing ")
    assert "safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(trained_copy.path.rglob("*.safetensors")) == files
    assert [file.read_bytes() for file in files] == before
    assert not list(trained_copy.path.rglob(".*")), "a temporary file was left"


def test_a_folder_that_cannot_be_written_is_not_called_a_full_disk(tmp_path: Path) -> None:
    """The error is the system's own, so that the advice is right."""
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "runs" / "last.safetensors", {"weight": mx.zeros(2)}, {})
    path = tmp_path / ("x" * 300) / "last.safetensors"
    with pytest.raises(OSError, match="too long"):
        write_safetensors(path, {"weight": mx.zeros(2)}, {})
