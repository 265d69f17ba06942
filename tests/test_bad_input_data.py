"""Bad data at the command line: one clear line, status 2, no traceback, nothing lost and nothing half written."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_codegen.cli.main import run
from mlx_codegen.config import TokenizerConfig
from mlx_codegen.tokenizer import train_tokenizer

CONFIG = """
model: {n_layers: 1, d_model: 16, n_heads: 2, vocab_size: 500, context_length: 16}
phases:
  code:
    sources: [{name: mine, path: mine.jsonl}]
    validation_fraction: 0.2
    validation_tokens: 64
    steps: 1
    batch_size: 2
    learning_rate: 0.001
"""
STORIES = [f"The cat sat on mat number {number} and slept.\n" for number in range(60)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good config and good data, for tests to spoil."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail; returns its one line. What was on disk before is there after, as it was."""
    before = files(Path())
    capsys.readouterr()
    assert run(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "Traceback" not in line
    after = files(Path())
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "partial" in name or "tmp" in name or ".sqlite" in name]
    return line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "the corpus is empty"),
        ("blank.txt", b"\n \n\t\n", "the corpus is empty"),
        ("one.txt", b"A single document.\n", "has one document"),
        ("binary.txt", b"\x7fELF\0\1\2", "binary.txt: a binary file, not text"),
        ("latin.txt", "Grüße\n".encode("latin-1"), "latin.txt: not UTF-8 text (byte 2)"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": "b"\n', "broken.jsonl, line 2: not valid JSON"),
        ("column.jsonl", b'{"words": "a"}\n', "no text, content, code, script in it (found: words)"),
        ("object.json", b'{"a": 1}', "object.json: expected a JSON list"),
        ("bad.parquet", b"PAR1", "bad.parquet: not a readable Parquet file"),
    ],
)
def test_bad_file_is_refused(name: str, content: bytes, words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training on a bad file stops before anything is trained, with the file and what is wrong with it."""
    (folder / name).write_bytes(content)
    assert words in refused(capsys, "train", "run.yaml", "--code-data", name)
    assert not list(folder.rglob("*.safetensors"))


def test_missing_path_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there, on the command line and in a config, is named."""
    assert "no file or folder none.txt" in refused(capsys, "prepare", "run.yaml", "--code-data", "none.txt")
    assert "no file or folder ~nobody-here/a" in refused(capsys, "prepare", "run.yaml", "--code-data", "~nobody-here/a")
    # What `--code-data "$DATA"` gives without DATA; it is not the folder one happens to be in
    assert "no file or folder without a name" in refused(capsys, "prepare", "run.yaml", "--code-data", "")
    (folder / "run.yaml").write_text(CONFIG.replace("mine.jsonl", "gone.jsonl"))
    assert "no file or folder gone.jsonl" in refused(capsys, "prepare", "run.yaml")


def test_folder_without_text_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of photographs is no corpus."""
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(b"\x89PNG")
    assert "the folder photos holds no" in refused(capsys, "prepare", "run.yaml", "--code-data", "photos")


def test_folder_of_binary_files_is_an_empty_corpus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files left out one by one may leave nothing."""
    (folder / "bin").mkdir()
    (folder / "bin" / "a").write_bytes(b"\0\1")
    assert "the corpus is empty" in refused(capsys, "prepare", "run.yaml", "--code-data", "bin")


def test_two_sources_of_one_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their token files would overwrite each other."""
    (folder / "mine.txt").write_text("hello\n")
    line = refused(capsys, "prepare", "run.yaml", "--code-data", "mine.txt", "--code-data", "mine.jsonl")
    assert "two sources are called 'mine'" in line


def test_data_for_a_phase_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """English given to a config without a language phase would be read by nobody."""
    assert "has no language phase" in refused(capsys, "prepare", "run.yaml", "--language-data", "mine.jsonl")


def test_hub_source_offline_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set out of reach names what can be used instead."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = refused(capsys, "prepare", "run.yaml", "--code-data", "hub:owner/name")
    assert "hub data set owner/name cannot be read" in line and "bundled: english or bash" in line


def test_bad_source_leaves_an_earlier_preparation_intact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake after good work costs nothing: token files, tokenizer and settings of before go on working."""
    assert run(["prepare", "run.yaml"]) == 0
    (folder / "bad.jsonl").write_text((folder / "mine.jsonl").read_text() + "{broken\n")
    refused(capsys, "prepare", "run.yaml", "--code-data", "bad.jsonl")
    assert run(["prepare", "run.yaml"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_vocabulary_larger_than_the_corpus_is_reduced_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an error: a small corpus gets the largest vocabulary it carries, and the person is told the size."""
    assert run(["prepare", "run.yaml", "--set", "model.vocab_size=8000"]) == 0
    assert "of the 8000 pieces asked for; the model gets that many" in " ".join(capsys.readouterr().out.split())


def test_vocabulary_beyond_uint16_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Token files hold 16 bits a token."""
    line = refused(capsys, "prepare", "run.yaml", "--set", "model.vocab_size=65537")
    assert "model.vocab_size" in line and "65536" in line


def test_corpus_smaller_than_a_window_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two words do not fill a context: the numbers and both remedies are told."""
    (folder / "short.jsonl").write_text('{"text": "hi"}\n{"text": "ho"}\n')
    line = refused(capsys, "train", "run.yaml", "--code-data", "short.jsonl")
    assert "fewer than one window of 16; add text, or lower model.context_length" in line


def test_runs_folder_in_the_way_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file called `runs` cannot hold a run; it is named, not replaced."""
    (folder / "runs").write_text("mine")
    assert "runs" in refused(capsys, "prepare", "run.yaml")


def test_damaged_tokenizer_of_a_run_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut tokenizer.model is refused by name, and stays for the person to look at."""
    assert run(["prepare", "run.yaml"]) == 0
    model = folder / "runs" / "run" / "tokenizer" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:1000])
    assert "tokenizer.model: not a SentencePiece model, or damaged" in refused(capsys, "prepare", "run.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, made once."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "run.yaml").write_text(CONFIG)
        (folder / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
        assert run(["train", "run.yaml"]) == 0
    return folder


def resume(capsys: pytest.CaptureFixture[str]) -> str:
    """The line that going on with a spoiled run gets."""
    return refused(capsys, "train", "run.yaml", "--resume")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mine-train.bin", b"\1\2", "not as large as its manifest says"),
        ("mine-train.idx", None, "not as large as its manifest says"),
        ("manifest.json", b"{", "manifest.json: missing or damaged"),
        ("manifest.json", None, "manifest.json: missing or damaged"),
    ],
)
def test_spoiled_token_files_stop_a_resumed_run(
    name: str, content: bytes | None, words: str, trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run under way goes on with its own token files or not at all; its checkpoints stay."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    file = folder / "runs" / "run" / "data" / "code" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert words in resume(capsys)


def test_exchanged_tokenizer_stops_a_resumed_run(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ids of one tokenizer are noise to another; the hash tells them apart."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    other = train_tokenizer(STORIES, TokenizerConfig(type="char"), 500)
    (folder / "runs" / "run" / "tokenizer" / "tokenizer.model").write_bytes(other.model_bytes)
    assert other.hash in resume(capsys)
