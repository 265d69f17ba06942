"""Hugging Face folders: what goes out comes back, other libraries get the same tokens, and bad folders get one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mlx.utils import tree_flatten
from safetensors import safe_open
from tiny_run import Recorder, TrainedRun, save_model, tiny_config, tiny_tokenizer

import mlx_codegen
from mlx_codegen.checkpoint import load_checkpoint, save_checkpoint
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import Family, ModelConfig, SourceConfig, TokenizerConfig
from mlx_codegen.data.sources import read_documents
from mlx_codegen.errors import UserError
from mlx_codegen.generation.prompts import prompt_text
from mlx_codegen.hub import export as export_module
from mlx_codegen.hub.export import export_model, whole_folder
from mlx_codegen.hub.folder import load_folder, open_checkpoint, read_facts, sha256
from mlx_codegen.hub.layouts import hugging_face_weights, our_weights
from mlx_codegen.hub.tokenizer_json import CHAT_TEMPLATE, hugging_face_tokenizer
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import CONTROL_TOKENS, END_OF_TEXT, Tokenizer, train_tokenizer
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
FAMILIES: tuple[Family, ...] = ("gpt2", "gpt_neox", "llama")
REQUEST = "Create a backup script"
Checkpoints = Callable[[str], Path]


def greedy(path: Path) -> str:
    return mlx_codegen.load(path).generate(REQUEST, temperature=0, max_tokens=40)


@pytest.fixture
def exported(family_checkpoint: Checkpoints, tmp_path: Path) -> Path:
    """A folder of a test's own, to spoil."""
    export_model(family_checkpoint("gpt2"), tmp_path / "model", "float32")
    return tmp_path / "model"


# --- out and back ---


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_are_inverse(family: Family, bias: bool) -> None:
    """Every array comes back under its name, in its shape and bit for bit; so none is lost or exchanged."""
    config = ModelConfig(family=family, n_layers=2, d_model=24, n_heads=3, d_ff=40, vocab_size=30, context_length=16, bias=bias)
    shapes = tree_flatten(Transformer(config).parameters())
    ours = {name: mx.random.normal(value.shape) for name, value in shapes}
    back = our_weights(hugging_face_weights(ours, config), config)
    assert back.keys() == ours.keys()
    assert all(mx.array_equal(back[name], ours[name]).item() for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back(family: Family, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Weights, tokenizer, sizes, progress, configuration and text are the same as before."""
    path, folder = family_checkpoint(family), tmp_path / family
    export_model(path, folder, "float32")
    before, after = load_checkpoint(path), load_folder(folder)
    assert before.weights.keys() == after.weights.keys()
    assert all(mx.array_equal(before.weights[name], after.weights[name]).item() for name in before.weights)
    assert after.tokenizer.model_bytes == before.tokenizer.model_bytes
    assert (after.model_config, after.progress, after.config) == (before.model_config, before.progress, before.config)
    assert greedy(folder) == greedy(path)


@pytest.mark.parametrize(("dtype", "name_in_file"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_half_precision_rounds_and_no_more(dtype: Any, name_in_file: str, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Weights open as float32, rounded once."""
    export_model(family_checkpoint("gpt_neox"), tmp_path / "model", dtype)
    with safe_open(tmp_path / "model" / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {name_in_file}  # noqa: SIM118 (not a dict)
    weights = load_folder(tmp_path / "model").weights
    for name, value in load_checkpoint(family_checkpoint("gpt_neox")).weights.items():
        assert weights[name].dtype == mx.float32
        assert mx.array_equal(weights[name], value.astype(getattr(mx, dtype)).astype(mx.float32)).item()


@pytest.mark.parametrize(("family", "bits"), [("gpt2", 4), ("gpt_neox", 8), ("llama", 4)])
def test_quantised_models_open_too(family: Family, bits: int, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """No weight is off by more than a step; the file shrinks; bits per byte before and after are told."""
    folder, path = tmp_path / "model", family_checkpoint(family)
    result = export_model(path, folder, "float32", bits)
    assert result.bits_per_byte is not None
    before, after = result.bits_per_byte
    assert 0 < abs(after / before - 1) < 0.05
    weights = load_folder(folder).weights
    for name, value in load_checkpoint(path).weights.items():
        error, step = mx.abs(weights[name] - value).max().item(), (value.max() - value.min()).item() / (2**bits - 1)
        assert 0 < error < step if value.ndim == 2 else error == 0
    size = sum(value.nbytes for value in load_checkpoint(path).weights.values())
    assert (folder / "model.safetensors").stat().st_size < size * (bits + 2) / 32


def test_an_exported_folder_is_exported_again(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A release in float32 becomes one in float16 as if it came from the checkpoint, facts included."""
    export_model(family_checkpoint("llama"), tmp_path / "first", "float32")
    export_model(tmp_path / "first", tmp_path / "second")
    export_model(family_checkpoint("llama"), tmp_path / "direct")
    assert read_facts(tmp_path / "second") == read_facts(tmp_path / "direct")


def test_shards_stay_small_and_come_back(family_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard exceeds the limit, but for an array that does alone; the index names each array's file."""
    limit = 150_000
    monkeypatch.setattr(export_module, "SHARD_BYTES", limit)
    monkeypatch.setattr(export_module, "HEADER_BYTES", 4_000)
    result = export_model(family_checkpoint("gpt2"), tmp_path / "model", "float32")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) == result.weight_files >= 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < limit for shard in shards)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            assert set(file.keys()) == {name for name, place in index.items() if place == shard.name}
    assert greedy(tmp_path / "model") == greedy(family_checkpoint("gpt2"))


@pytest.mark.parametrize("quantize", [None, 8])
def test_training_starts_from_an_exported_folder(quantize: int | None, trained_run: TrainedRun, tmp_path: Path) -> None:
    """`--init-from FOLDER` takes weights and tokenizer; the weights are learned on in float32."""
    best = trained_run.folder.checkpoint("language", "best")
    export_model(best, tmp_path / "model", "float16", quantize)
    folder, recorder = RunFolder(tmp_path / "run"), Recorder()
    config = tiny_config("phases.code.steps=1", "phases.code.learning_rate=1e-9", "phases.language=null")
    train_run(folder, config, ["code"], recorder, init_from=tmp_path / "model")
    assert tiny_tokenizer(folder).hash == load_checkpoint(best).tokenizer.hash
    start, after = load_folder(tmp_path / "model").weights, load_checkpoint(folder.checkpoint("code", "last")).weights
    assert {value.dtype for value in after.values()} == {mx.float32}
    assert all(mx.allclose(start[name], after[name], atol=1e-6).item() for name in start)


def test_training_starts_from_a_run_folder(trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--init-from runs/tiny` takes what `generate --model runs/tiny` would."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config("phases.code.steps=1", "phases.code.learning_rate=1e-9", "phases.language=null")
    Path("tiny.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    arguments = ["train", "tiny.yaml", "--name", "new", "--phase", "code", "--init-from", str(trained_run.folder.path)]
    assert command_line(arguments) == 0
    start = load_checkpoint(trained_run.folder.checkpoint("code", "best")).weights
    after = load_checkpoint(Path("runs/new/code/last.safetensors")).weights
    assert all(mx.allclose(start[name], after[name], atol=1e-6).item() for name in start)


def test_every_command_takes_a_folder(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Generate, inspect and the tokenizer's commands, with the folder or with the file of weights in it."""
    expected = greedy(exported)
    for path in (exported, exported / "model.safetensors"):
        assert command_line(["generate", REQUEST, "--model", str(path), "--temperature", "0", "--max-tokens", "40"]) == 0
        assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    assert command_line(["inspect", "tokens", "ls -l", "--model", str(exported)]) == 0
    assert command_line(["tokenizer", "show", "ls -l", "--tokenizer", str(exported)]) == 0


def test_a_language_model_has_no_chat_template(trained_run: TrainedRun, tmp_path: Path) -> None:
    """It was never asked for anything; its phase comes back, so that it goes on continuing text."""
    export_model(trained_run.folder.checkpoint("language", "best"), tmp_path / "model")
    assert "chat_template" not in json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert mlx_codegen.load(tmp_path / "model").phase == "language"


# --- the card ---


def test_the_card_tells_the_checkpoints_facts(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Sizes, both phases' tokens and losses, sources; a quantised model says what that cost and leaves transformers out."""
    best = trained_run.folder.checkpoint("code", "best")
    result = export_model(best, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| parameters | {result.parameters:,} |" in card
    for phase in ("language", "code"):
        progress = load_checkpoint(trained_run.folder.checkpoint(phase, "best")).progress  # type: ignore[arg-type]
        row = next(line for line in card.splitlines() if line.startswith(f"| {phase} |"))
        assert f"| {progress.step} | {progress.tokens_seen:,} |" in row
        assert f"| {progress.validation['loss']:.3f} | {progress.validation['bits_per_byte']:.3f} |" in row
    assert "transformers import" in card
    export_model(best, tmp_path / "small", quantize=8)
    card = (tmp_path / "small" / "README.md").read_text()
    assert "transformers import" not in card
    assert "8 bits in groups of 32" in card


def test_the_card_tells_all_that_the_weights_went_through(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Two phases of a run, and a run from its weights (by checkpoint or exported folder): a row each, with its data."""
    change = ("phases.code.steps=1", "phases.code.sources.0.weight=0.5", "phases.language=null")
    first, starts = trained_run.folder, []
    export_model(first.checkpoint("code", "best"), tmp_path / "first")
    for name, start in (("a", first.checkpoint("code", "best")), ("b", tmp_path / "first")):
        folder = RunFolder(tmp_path / name)
        train_run(folder, tiny_config(*change), ["code"], Recorder(), init_from=start)
        export_model(folder.checkpoint("code", "last"), tmp_path / f"{name}-1")
        export_model(tmp_path / f"{name}-1", tmp_path / f"{name}-2")
        starts += [(tmp_path / f"{name}-{again}" / "README.md").read_text() for again in (1, 2)]
    for card in starts:
        rows = [line for line in card.splitlines() if line.startswith(("| language |", "| code |"))]
        assert [row.split("|")[1].strip() for row in rows] == ["language", "code", "code"]
        assert "| 1 |" in rows[2] and "0.5 passes" in rows[2] and "0.5 passes" not in rows[1]


def test_paths_on_the_trainers_disk_stay_private(trained_run: TrainedRun, tmp_path: Path) -> None:
    """A folder made to be published does not say where its author keeps files."""
    checkpoint = load_checkpoint(trained_run.folder.checkpoint("code", "best"))
    config = tiny_config(
        *[f"phases.code.sources.0.{change}" for change in ("bundled=null", "path=/home/lovelace/secret/mine.jsonl")]
    )
    save_checkpoint(tmp_path / "c.safetensors", checkpoint.build_model(), checkpoint.tokenizer, config, checkpoint.progress)
    export_model(tmp_path / "c.safetensors", tmp_path / "model")
    text = "".join(file.read_text() for file in (tmp_path / "model").iterdir() if file.suffix in (".json", ".md"))
    assert "lovelace" not in text
    assert "mine.jsonl" in text


# --- whole or not at all ---


def test_a_folder_that_holds_something_is_not_touched(exported: Path, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """An empty one is used; a file is refused."""
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    with pytest.raises(UserError, match="model is not empty; export to a new folder"):
        export_model(family_checkpoint("gpt2"), exported)
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export_model(family_checkpoint("gpt2"), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    export_model(family_checkpoint("gpt2"), tmp_path / "empty")
    assert greedy(tmp_path / "empty")


def test_nothing_is_left_of_a_failed_export(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Neither half a folder nor a temporary one; what a killed process left is removed by the next."""
    checkpoint = load_checkpoint(family_checkpoint("gpt2"))
    model = checkpoint.build_model()
    model.final_norm.weight[0] = 1e6
    save_model(tmp_path / "large.safetensors", model, checkpoint.tokenizer)
    with pytest.raises(UserError, match=r"final_norm.weight holds values that are not finite in float16"):
        export_model(tmp_path / "large.safetensors", tmp_path / "model")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "model") as partial:
        (partial / "half").write_text("x")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["large.safetensors"]
    (tmp_path / ".model.1.partial").mkdir()
    export_model(tmp_path / "large.safetensors", tmp_path / "model", "bfloat16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.safetensors", "model"]


def test_a_full_disk_is_one_line(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; nothing of the folder remains."""
    code = (
        "import resource, signal, sys, mlx_codegen\n"
        "from mlx_codegen.cli.main import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["export", str(family_checkpoint("gpt2")), str(tmp_path / "model")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left on disk")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- tokens ---

HARD_TEXTS = (
    "", " ", "  two", "tab\there", "\n\n\t\n", "line\r\n", "\0", "a▁b▁▁ ▁", "é漢字\U0001f600\u200d", "ﬁ", "<unk> <s> </s> <0x0A>",
    "----------=====", " " * 100, "x" * 300, "1234567890", 'echo "$HOME" | awk \'{print $1}\'\n',
)  # fmt: skip


def documents(count: int) -> Iterable[str]:
    """Of each kind of data that we have, the shared files where they are."""
    origins: list[dict[str, Any]] = [{"bundled": "english"}, {"bundled": "bash"}]
    if SHARED_DATA.is_dir():
        origins += [{"path": str(file)} for file in sorted(SHARED_DATA.glob("*.jsonl"))]
    for origin in origins:
        yield from islice(read_documents(SourceConfig(name="documents", **origin)), count)


@pytest.fixture(scope="module")
def real_tokenizer() -> Tokenizer:
    """Of a real size, with pieces of many lengths."""
    return train_tokenizer(documents(100), TokenizerConfig(), 2000)


@pytest.fixture(scope="module")
def char_tokenizer() -> Tokenizer:
    return train_tokenizer(documents(20), TokenizerConfig(type="char"), 2000)


def same_tokens(tokenizer: Tokenizer, texts: list[str]) -> None:
    theirs = hugging_face_tokenizer(tokenizer)
    for text, ids, encoding in zip(
        texts, tokenizer.encode_batch(texts), theirs.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        assert encoding.ids == ids, text[:100]
        assert theirs.decode(ids) == text


def test_tokens_equal_those_of_sentencepiece(real_tokenizer: Tokenizer) -> None:
    """On every document, and on what tokenizers stumble over; both ways."""
    same_tokens(real_tokenizer, [*HARD_TEXTS, *documents(400)])


def test_tokens_of_characters_are_equal_too(char_tokenizer: Tokenizer) -> None:
    """A tokenizer of type char has no merges at all."""
    same_tokens(char_tokenizer, [*HARD_TEXTS, *documents(20)])


@pytest.fixture(scope="module")
def of_hugging_face(real_tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return hugging_face_tokenizer(real_tokenizer)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(["the ", "  ", "--", "-", "a", "e", "▁", "\n", "$(", "1"]), st.characters(codec="utf-8")))
)
def test_tokens_of_any_text_are_equal(real_tokenizer: Tokenizer, of_hugging_face: tokenizers.Tokenizer, parts: list[str]) -> None:
    """Runs and repetitions are where two orders of joining could part."""
    text = "".join(parts)
    assert of_hugging_face.encode(text, add_special_tokens=False).ids == real_tokenizer.encode(text)


def test_special_tokens_are_special_there(real_tokenizer: Tokenizer) -> None:
    """Every document opens with end-of-text; control tokens have our ids, and vanish when text is asked for."""
    theirs = hugging_face_tokenizer(real_tokenizer)
    assert theirs.encode("ls").ids == [real_tokenizer.end_of_text_id, *real_tokenizer.encode("ls")]
    for name in CONTROL_TOKENS:
        assert real_tokenizer.is_control(theirs.token_to_id(name))
        assert theirs.decode([theirs.token_to_id(name)]) == ""
    assert theirs.get_vocab_size() == real_tokenizer.vocab_size


REQUESTS = (REQUEST, "two\n\n lines ", "#!/bin/bash\n# Create it", "# begun\nls", "  # indented", "#!/bin/bash\nls\n")


@pytest.mark.parametrize("request_text", REQUESTS)
def test_the_chat_template_asks_as_we_do(request_text: str) -> None:
    """A chat client's request becomes the text that our own commands give the model."""
    # As transformers renders templates
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        CHAT_TEMPLATE.read_text().rstrip("\n")
    )
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": request_text}]
    assert template.render(messages=asked, add_generation_prompt=True, **special) == END_OF_TEXT + prompt_text(request_text)
    answered = [*asked, {"role": "assistant", "content": "#!/bin/bash\nls\n\n"}]
    expected = END_OF_TEXT + prompt_text(request_text) + "ls\n" + END_OF_TEXT
    assert template.render(messages=answered, **special) == expected


# --- bad folders ---


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(values))


def edit_facts(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "mlx_codegen.json", lambda facts: facts.update(values))


def edit_progress(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "mlx_codegen.json", lambda facts: facts["progress"].update(values))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_shape(folder: Path) -> None:
    arrays = mx.load(str(folder / "model.safetensors"))
    arrays["wte.weight"] = arrays["wte.weight"][:, :32]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)


def without_an_array(folder: Path) -> None:
    arrays = mx.load(str(folder / "model.safetensors"))
    del arrays["h.1.mlp.c_fc.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)


def not_a_number(folder: Path) -> None:
    """As a training run of another tool may end: the checksum is right, the weights are worthless."""
    file = folder / "model.safetensors"
    arrays = mx.load(str(file))
    mx.save_safetensors(str(file), arrays | {"wte.weight": mx.full(arrays["wte.weight"].shape, mx.nan)})
    edit_json(folder / "mlx_codegen.json", lambda facts: facts["checksums"].update({file.name: sha256(file)}))


def other_tokenizer(folder: Path) -> None:
    shutil.copy(folder.parent / "other.model", folder / "tokenizer.model")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors, the file with the weights"),
    "pickle": (to_pickle, "pytorch_model.bin: a pickle, which can run any code"),
    "only a pickle": (lambda f: [to_pickle(f), (f / "config.json").unlink()], "pytorch_model.bin: a pickle"),
    "half the weights": (lambda f: halve(f / "model.safetensors"), "model.safetensors: truncated or no safetensors file"),
    "one bit": (lambda f: flip_a_bit(f / "model.safetensors"), "model.safetensors: damaged or edited"),
    "shape": (other_shape, "wte.weight has shape (448, 32), the model needs (448, 64)"),
    "array": (without_an_array, "no array h.1.mlp.c_fc.weight"),
    "not a number": (not_a_number, "token_embedding.weight holds NaN or infinity"),
    "tokenizer": (other_tokenizer, "tokenizer.model does not belong to the model"),
    "half a tokenizer": (lambda f: halve(f / "tokenizer.model"), "tokenizer.model: not a SentencePiece model, or damaged"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "no tokenizer at"),
    "architecture": (edit_config(model_type="qwen2"), "a qwen2 model; mlx-codegen"),
    "other family": (edit_config(model_type="llama"), "config.json says model_type"),
    "size": (edit_config(n_layer=3), "config.json says n_layer 3, the model has 2"),
    "half a config": (lambda f: halve(f / "config.json"), "config.json: truncated or not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; copy the whole folder"),
    "no facts": (lambda f: (f / "mlx_codegen.json").unlink(), "has no mlx_codegen.json: only folders that mlx-codegen export"),
    "half the facts": (lambda f: halve(f / "mlx_codegen.json"), "mlx_codegen.json: truncated or not JSON"),
    "a fact less": (lambda f: edit_json(f / "mlx_codegen.json", lambda c: c.pop("progress")), "written by another version"),
    "deep facts": (lambda f: (f / "mlx_codegen.json").write_text("[" * 100_000), "mlx_codegen.json: truncated or not JSON"),
    "weights elsewhere": (edit_facts(checksums={"../other/model.safetensors": ""}), "names weights outside of the folder"),
    "a foreign phase": (edit_progress(phase="maths"), "written by another version of mlx_codegen (phase 'maths')"),
    "steps in words": (edit_progress(step="many"), "written by another version of mlx_codegen (step 'many')"),
    "a later format": (lambda f: edit_json(f / "mlx_codegen.json", lambda c: c.update(format="2")), "use the mlx_codegen that"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_line(
    name: str, exported: Path, char_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and what is wrong, by name; no traceback, no text."""
    spoil, message = BAD[name]
    (exported.parent / "other.model").write_bytes(char_tokenizer.model_bytes)
    spoil(exported)
    assert command_line(["generate", "x", "--model", str(exported)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_exporting_a_folder_without_its_history_is_one_line(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What came before belongs on the model card; nothing is written without it."""
    edit_facts(earlier_progress=None)(exported)
    assert command_line(["export", str(exported), str(exported.parent / "new")]) == 2
    assert "mlx_codegen.json: has no earlier_progress" in capsys.readouterr().err
    assert not (exported.parent / "new").exists()


def test_a_link_is_not_exported_to(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder cannot take the place of a link, and one that leads in a circle has no place."""
    link = exported.parent / "circle"
    link.symlink_to("circle")
    assert command_line(["export", str(exported), str(link)]) == 2
    assert "circle is a link; export to a new folder" in capsys.readouterr().err


def test_quantised_weights_must_fit_their_description(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A config.json of other bits or groups than the weights have gives no model."""
    export_model(family_checkpoint("llama"), tmp_path / "model", quantize=8)
    for wrong in ("much", {"bits": 4}, {"bits": 4, "group_size": 64}, {"bits": 8, "group_size": 32}):
        edit_config(quantization=wrong)(tmp_path / "model")
        with pytest.raises(UserError, match=r"quantised weights do not fit config.json|has shape"):
            open_checkpoint(tmp_path / "model")


def test_a_missing_shard_is_named(family_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the array that happens to be in it."""
    monkeypatch.setattr(export_module, "SHARD_BYTES", 240_000)
    export_model(family_checkpoint("llama"), tmp_path / "model", "float32")
    shard = sorted((tmp_path / "model").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"has no {shard.name}, one of \d files with weights; copy the whole folder"):
        open_checkpoint(tmp_path / "model")


def test_a_pickle_by_its_own_name_is_refused(tmp_path: Path) -> None:
    """As --model FILE or --init-from FILE: never opened."""
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02anything")
    with pytest.raises(UserError, match=r"weights.pt: a pickle"):
        open_checkpoint(tmp_path / "weights.pt")


def test_wrong_bits_and_widths_that_cannot_be_quantised(trained_run: TrainedRun, tmp_path: Path) -> None:
    """3 bits are not offered; 24 values make no group of 32."""
    assert command_line(["export", "x", str(tmp_path / "model"), "--quantize", "3"]) == 2
    tokenizer = load_checkpoint(trained_run.folder.checkpoint("code", "best")).tokenizer
    config = ModelConfig(family="llama", n_layers=1, d_model=24, n_heads=2, vocab_size=tokenizer.vocab_size, context_length=64)
    save_model(tmp_path / "narrow.safetensors", Transformer(config), tokenizer)
    with pytest.raises(UserError, match="must be multiples of 32 to quantise"):
        export_model(tmp_path / "narrow.safetensors", tmp_path / "model", quantize=4)
    assert not (tmp_path / "model").exists()
