"""Wrong use and broken files on the way from training to text: one clear line, exit status 2, nothing lost or half written.

Every case goes through the real command line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_run import TrainedRun, save_model, tiny_config, tiny_tokenizer

from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import ModelConfig, TokenizerConfig, to_yaml
from mlx_codegen.model import Transformer
from mlx_codegen.tokenizer import train_tokenizer
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
Refuse = Callable[..., str]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail, in a folder with tiny.yaml. Gives the one line after `error: `."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_config()))

    def run(*arguments: str, unchanged: bool = True) -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        assert command_line(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.err.endswith("\n")
        assert "Traceback" not in captured.out + captured.err
        if unchanged:
            assert tree(tmp_path) == before, "something was written or lost"
        return captured.err.removeprefix("error: ").rstrip("\n")

    return run


# --- generate ---


def test_missing_checkpoint(refused: Refuse) -> None:
    """Says what is missing and how to make one."""
    assert "runs/none is not there; train one first" in refused("generate", "x", "--model", "runs/none")
    Path("empty").mkdir()
    assert "empty holds no checkpoint; train one first" in refused("generate", "x", "--model", "empty")


def test_truncated_checkpoint(trained_copy: RunFolder, refused: Refuse) -> None:
    """Half a file, as a full disk or a broken download leaves it."""
    best = trained_copy.checkpoint("code", "best")
    best.write_bytes(best.read_bytes()[: best.stat().st_size // 2])
    assert "code/best.safetensors: truncated" in refused("generate", "x", "--model", str(trained_copy.path))


def test_altered_checkpoint(trained_copy: RunFolder, refused: Refuse) -> None:
    """One bit of one weight."""
    best = trained_copy.checkpoint("code", "best")
    content = bytearray(best.read_bytes())
    content[-5] ^= 1
    best.write_bytes(content)
    assert "code/best.safetensors: damaged or edited" in refused("generate", "x", "--model", str(trained_copy.path))


def test_foreign_checkpoint(tmp_path: Path, refused: Refuse) -> None:
    """A safetensors file of another project, and a file that is none."""
    mx.save_safetensors("foreign.safetensors", {"weight": mx.zeros((2, 2), mx.bfloat16)})
    assert "no checkpoint of mlx_codegen" in refused("generate", "x", "--model", "foreign.safetensors")
    assert "no safetensors file" in refused("generate", "x", "--model", "tiny.yaml")


def test_prompts_that_cannot_be_answered(trained_copy: RunFolder, refused: Refuse) -> None:
    """Empty, blank, too long for the context, missing, given twice, not Unicode."""
    model = ("--model", str(trained_copy.path))
    for empty in ("", "   ", r"\n"):
        assert "the prompt is empty; say what you want" in refused("generate", empty, *model)
    message = refused("generate", "a very long request " * 30, *model)
    assert "tokens, the model reads at most 30; shorten it" in message
    assert "give one prompt, for example" in refused("generate")
    assert "give one prompt, for example" in refused("generate", "x", "--prompt", "y")
    assert "not valid Unicode" in refused("generate", "caf\udce9", *model)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--temperature", "-0.1", "greater than or equal to 0"),
        ("--temperature", "nan", "finite"),
        ("--temperature", "hot", "valid"),
        ("--top-p", "0", "greater than 0"),
        ("--top-p", "1.1", "less than or equal to 1"),
        ("--top-p", "-1", "greater than 0"),
        ("--top-k", "-1", "greater than or equal to 0"),
        ("--top-k", "1.5", "valid"),
        ("--max-tokens", "0", "greater than or equal to 1"),
        ("--seed", "-1", "greater than or equal to 0"),
        ("--seed", str(2**64), "less than"),
    ],
)
def test_sampling_out_of_range(trained_copy: RunFolder, refused: Refuse, option: str, value: str, allowed: str) -> None:
    """The option and what is allowed are named; a value is never quietly replaced by another."""
    message = refused("generate", "x", option, value)
    assert option.strip("-").replace("-", "_") in message.replace("-", "_")
    assert allowed in message


# --- the command line itself ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "x", "--temprature", "1"], "--temprature"),
        (["train", "tiny.yaml", "--resum"], "--resum"),
        (["trian"], "trian"),
        (["train"], "config"),
        (["train", "tiny.yaml", "--phase", "maths"], "maths"),
        (["train", "tiny.yaml", "--name"], "--name"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_unknown_options_and_commands(refused: Refuse, arguments: list[str], named: str) -> None:
    """The wrong or missing word is named."""
    assert named in refused(*arguments).lower()


# --- train ---


def test_resume_without_a_run(refused: Refuse) -> None:
    """Nothing to go on with; nothing is made."""
    assert "no run in runs/tiny to resume; leave --resume out" in refused("train", "tiny.yaml", "--resume")


def test_resume_and_init_from_exclude_each_other(trained_copy: RunFolder, refused: Refuse) -> None:
    """One continues, the other starts anew."""
    best = str(trained_copy.checkpoint("code", "best"))
    assert "give only one" in refused("train", "tiny.yaml", "--resume", "--init-from", best)


def test_existing_run_is_not_overwritten(trained_copy: RunFolder, refused: Refuse) -> None:
    """Hours of training are not lost to a repeated command."""
    for options in ([], ["--phase", "code"], ["--name", "tiny"]):
        message = refused("train", "tiny.yaml", *options)
        assert "already holds a trained" in message
        assert "--resume" in message
        assert "--name" in message


@pytest.mark.parametrize("name", ["a/b", "../outside", "/tmp/x", ".", "..", ".hidden", "a/"])
def test_run_name_is_one_folder(refused: Refuse, name: str) -> None:
    """A run writes under runs/<name>/ and nowhere else."""
    assert "one folder name" in refused("train", "tiny.yaml", "--name", name)


def test_missing_inputs(refused: Refuse) -> None:
    """Config, starting checkpoint, tokenizer, data: each is named."""
    assert "no config file none.yaml" in refused("train", "none.yaml")
    assert "no checkpoint none.safetensors" in refused("train", "tiny.yaml", "--init-from", "none.safetensors")
    assert "no tokenizer at none.model" in refused("train", "tiny.yaml", "--tokenizer", "none.model")
    assert "no file or folder none.jsonl" in refused("train", "tiny.yaml", "--code-data", "none.jsonl")


def test_phase_that_the_config_has_not(refused: Refuse) -> None:
    """Instead of training nothing and calling it done."""
    message = refused("train", "tiny.yaml", "--set", "phases.language=null", "--phase", "language")
    assert "has no language phase" in message


def test_code_phase_without_its_start(run: RunFolder, refused: Refuse) -> None:
    """All three ways on are named."""
    message = refused("train", "tiny.yaml", "--phase", "code", unchanged=False)
    assert all(way in message for way in ("--phase language", "--init-from", "--set phases.language=null"))
    assert not run.holds_checkpoints()


def test_checkpoint_of_another_tokenizer(trained_copy: RunFolder, tmp_path: Path, refused: Refuse) -> None:
    """Its ids mean other text: refused for a start, for a resume, for the code phase's start; hashes are shown."""
    other = train_tokenizer(["other words for another tokenizer\n" * 50, "#!/bin/bash\nls\n"], TokenizerConfig(), 448)
    (tmp_path / "other.model").write_bytes(other.model_bytes)
    best = str(trained_copy.checkpoint("language", "best"))
    arguments = ["train", "tiny.yaml", "--name", "new", "--init-from", best, "--tokenizer", "other.model"]
    message = refused(*arguments, unchanged=False)
    assert other.hash in message
    assert tiny_tokenizer(trained_copy).hash in message
    longer = ["--set", "phases.code.steps=99"]
    trained_copy.tokenizer_file.write_bytes(other.model_bytes)
    checkpoints = {file: file.read_bytes() for file in trained_copy.path.rglob("*.safetensors")}
    assert "tokenizer" in refused("train", "tiny.yaml", "--resume", *longer, unchanged=False)
    assert {file: file.read_bytes() for file in trained_copy.path.rglob("*.safetensors")} == checkpoints


def test_start_of_another_size(run: RunFolder, tmp_path: Path, refused: Refuse) -> None:
    """Array, its shape, and the shape that is needed; the run's folder holds no checkpoint afterwards."""
    tokenizer = tiny_tokenizer(run)
    shape = {"n_layers": 2, "n_heads": 2, "vocab_size": tokenizer.vocab_size, "context_length": 32}
    wide, llama = tmp_path / "wide.safetensors", tmp_path / "llama.safetensors"
    save_model(wide, Transformer(ModelConfig(d_model=64, **shape)), tokenizer)  # type: ignore[arg-type]
    save_model(llama, Transformer(ModelConfig(family="llama", d_model=32, **shape)), tokenizer)  # type: ignore[arg-type]
    message = refused("train", "tiny.yaml", "--init-from", str(wide), unchanged=False)
    assert "has shape" in message
    assert "the model needs" in message
    message = refused("train", "tiny.yaml", "--init-from", str(llama), unchanged=False)
    assert "another model family or size" in message
    assert not run.holds_checkpoints()


def test_model_cannot_change_on_resume(trained_copy: RunFolder, refused: Refuse) -> None:
    """Nor the data."""
    assert "cannot change model or tokenizer" in refused("train", "tiny.yaml", "--resume", "--set", "model.n_layers=3")
    message = refused("train", "tiny.yaml", "--resume", "--code-data", "bundled")
    assert "the run's own data" in message


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_checkpoints_are_not_resumed_from(trained_copy: RunFolder, refused: Refuse, damage: str) -> None:
    """Where the one before is no better. And not overwritten either: the person decides."""
    last = trained_copy.checkpoint("code", "last")
    for file in trained_copy.resumable("code"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content if damage == "altered" else content[:5000])
    message = refused("train", "tiny.yaml", "--resume", "--set", "phases.code.steps=99", unchanged=False)
    assert f"{last.relative_to(Path.cwd())}: " in message
    assert "use another checkpoint of the run" in message


def test_damaged_token_files_are_not_trained_on(trained_copy: RunFolder, refused: Refuse) -> None:
    """A token file cut short, a manifest that is no JSON."""
    longer = ["--resume", "--set", "phases.code.steps=99"]
    tokens = next(trained_copy.data("code").glob("*-train.bin"))
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    assert "not as large as its manifest says" in refused("train", "tiny.yaml", *longer, unchanged=False)
    tokens.write_bytes(content)
    (trained_copy.data("code") / "manifest.json").write_text("{")
    assert "manifest.json: missing or damaged" in refused("train", "tiny.yaml", *longer, unchanged=False)


def test_saved_config_that_was_broken_by_hand(trained_copy: RunFolder, refused: Refuse) -> None:
    """The file and the key are named."""
    text = trained_copy.config_file.read_text()
    trained_copy.config_file.write_text(text.replace("n_layers:", "n_layerz:"))
    message = refused("train", "tiny.yaml", "--resume")
    assert "runs/tiny/config.yaml" in message
    assert "n_layerz" in message


def test_a_file_where_the_runs_folder_should_be(tmp_path: Path, refused: Refuse) -> None:
    """An error of the file system is a line with the path, not a traceback."""
    (tmp_path / "runs").write_text("not a folder")
    assert "runs" in refused("train", "tiny.yaml")


def test_a_run_that_diverges_says_what_to_lower(run: RunFolder, trained_run: TrainedRun, refused: Refuse) -> None:
    """Weights that give no finite loss: five skipped steps, one line, exit 2, and `best` is not made from them."""
    tokenizer = tiny_tokenizer(run)
    model = Transformer(tiny_config().model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    model.token_embedding.weight[:] = 3e38  # finite, as what is opened has to be, but any sum of it is not
    save_model(Path("broken.safetensors"), model, tokenizer)
    message = refused("train", "tiny.yaml", "--phase", "code", "--init-from", "broken.safetensors", unchanged=False)
    assert "not finite for 5 steps in a row" in message
    assert "lower phases.code.learning_rate" in message
    assert not run.checkpoint("code", "best").exists()
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None] * 6, "JSON has no NaN"


def test_exit_status_and_streams_of_the_real_program(tmp_path: Path) -> None:
    """The same through a real process: nothing on stdout, one line on stderr, status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", "generate", "x", "--top-p", "7", "--model", "runs/none"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
