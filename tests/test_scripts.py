"""The scripts under the names that people look for, run as people run them: real processes, tiny real data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH = "Once upon a time there was a small {0}. The {0} ran to the river and saw a {1}. They were happy all day.\n"
ANIMALS = ("cat", "dog", "fox", "hen", "owl", "pig", "cow", "bee", "ant", "bat", "elk", "emu", "rat", "yak", "ram", "cub")


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python scripts/<script>.py ...`, with the hub out of reach."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """A folder with a few stories and a folder of scripts."""
    stories = [ENGLISH.format(a, b) for a in ANIMALS for b in ANIMALS if a != b]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    scripts = tmp_path / "own"
    scripts.mkdir()
    for number, animal in enumerate(ANIMALS * 8):
        (scripts / f"{number}.sh").write_text(f"#!/bin/bash\n# List {animal} files {number}\nls -l {animal}* | head -{number}\n")
    return tmp_path


def test_language_then_code_then_generate_work_in_sequence_on_one_name(corpora: Path) -> None:
    """The second script starts from what the first one learned, with its tokenizer; the third reads the result."""
    shared = ("--model-size", "nano", "--num-steps", "2", "--batch-size", "2", "--name", "both")
    language = run("train_language", *shared, "--data-dir", "stories.jsonl", "--code-data", "own", cwd=corpora)
    assert language.returncode == 0, language.stderr
    code = run("train_code", *shared, "--code-data", "own", "--learning-rate", "1e-3", cwd=corpora)
    assert code.returncode == 0, code.stderr
    assert "starting from runs/both/language/best.safetensors" in " ".join(code.stdout.split())
    lines = [json.loads(line) for line in (corpora / "runs/both/metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines if line["kind"] == "step"] == [
        ("language", 1), ("language", 2), ("code", 1), ("code", 2)
    ]  # fmt: skip
    generated = run(
        "generate", "--checkpoint", "runs/both", "--prompt", "List files", "--max-length", "4", "--seed", "1", cwd=corpora
    )
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.startswith("#!/bin/bash\n# List files\n")


def test_own_scripts_become_one_file_that_training_reads(corpora: Path) -> None:
    """Binary files are left out by name; what is written is JSON Lines, complete, with no temporary file beside it."""
    (corpora / "own" / "core.sh").write_bytes(b"\x7fELF\0\0")
    result = run("download_code_data", "--use-existing", "own", "--max-files", "20", cwd=corpora)
    assert result.returncode == 0, result.stderr
    (file,) = (corpora / "data/downloads").iterdir()
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(texts) == 20 and all(text.startswith("#!/bin/bash\n# List") for text in texts)
    assert f"train_code.py --model-size tiny --code-data {file.relative_to(corpora)}" in result.stdout


@pytest.mark.parametrize("script", ["download_language_data", "download_code_data"])
def test_without_network_a_download_says_so_and_leaves_nothing(script: str, tmp_path: Path) -> None:
    """A file of an earlier download survives."""
    downloads = tmp_path / "data" / "downloads"
    downloads.mkdir(parents=True)
    for name in ("tinystories.jsonl", "shell_scripts.jsonl"):
        (downloads / name).write_text("old\n")
    assert_one_line_error(run(script, cwd=tmp_path), "hub data set", "local", "bundled")
    assert sorted(file.name for file in downloads.iterdir()) == ["shell_scripts.jsonl", "tinystories.jsonl"]
    assert all(file.read_text() == "old\n" for file in downloads.iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_language", ["--data-dir", "nowhere.txt"], ["nowhere.txt"]),
        ("train_code", ["--code-data", "nowhere"], ["nowhere"]),
        ("train_code", ["--language-checkpoint", "no.safetensors"], ["no.safetensors"]),
        ("train_language", ["--model-size", "tinny"], ["tinny", "did you mean tiny"]),
        ("train_language", ["--num-steps", "2", "--num-epochs", "1"], ["not allowed with"]),
        ("train_language", ["--batch-size", "0"], ["batch_size", "0"]),
        ("train_code", ["--resume", "--name", "never"], ["never", "resume"]),
        ("generate", ["--prompt", "x", "--checkpoint", "nowhere"], ["nowhere"]),
        ("generate", ["--prompt", "x", "--temperature", "-1"], ["temperature"]),
        ("generate", [], ["--prompt"]),
        ("download_code_data", ["--use-existing", "nowhere"], ["nowhere"]),
        ("download_language_data", ["--max-stories", "0"], ["above zero"]),
        ("evaluate_checkpoints", ["nowhere"], ["nowhere", "no checkpoints"]),
        ("full_evaluation", ["nowhere"], ["nowhere"]),
        ("compare_baseline", ["nowhere"], ["nowhere"]),
        ("compare_model_sizes", ["tinny"], ["tinny", "did you mean tiny"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(script: str, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    assert_one_line_error(run(script, *arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.glob("runs/*/*.safetensors"))


def test_every_script_of_the_issue_has_help_with_an_example(tmp_path: Path) -> None:
    scripts = ("train_language", "train_code", "generate", "download_language_data", "download_code_data")
    for script in (*scripts, "evaluate_checkpoints", "compare_baseline", "compare_model_sizes"):
        result = run(script, "--help", cwd=tmp_path)
        assert result.returncode == 0 and f"Example: python scripts/{script}.py" in result.stdout, script
