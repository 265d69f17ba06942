"""Which model a command takes when none is named: the largest release, else the newest run, else one clear line."""

import os
from pathlib import Path

import pytest
from tiny_run import TrainedRun

from mlx_codegen.cli import demo
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.errors import UserError
from mlx_codegen.hub import releases


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models, and a repository without releases."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(releases, "REPOSITORY", tmp_path / "repository")
    return tmp_path


def fake_release(folder: Path, size: int) -> Path:
    """The files by which a release is found; it is never opened here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * size)
    return folder


def fake_run(name: str, modified: float) -> Path:
    best = Path("runs") / name / "code" / "best.safetensors"
    best.parent.mkdir(parents=True)
    best.touch()
    os.utime(best, (modified, modified))
    return Path("runs") / name


def test_without_any_model_one_line_says_what_to_do(empty_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="train one first"):
        releases.default_model()
    assert command_line(["generate", "x"]) == 2
    assert "mlx-codegen demo" in capsys.readouterr().err


def test_demo_with_nothing_to_show_says_so(empty_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["demo", "--no-train"]) == 0
    assert "train a small model with: mlx-codegen demo" in capsys.readouterr().out


def test_the_newest_run_is_taken_where_there_is_no_release(empty_place: Path) -> None:
    fake_run("old", 1_000)
    newest = fake_run("new", 2_000)
    fake_run("older", 500)
    assert releases.default_model() == newest


def test_the_largest_release_comes_before_any_run(empty_place: Path) -> None:
    """Those of the folder where one works come before those of the repository."""
    fake_run("mine", 9_000)
    fake_release(empty_place / "repository" / "weights" / "small", 500)
    assert releases.default_model() == empty_place / "repository" / "weights" / "small"
    fake_release(Path("weights") / "nano", 10)
    fake_release(Path("weights") / "tiny", 100)
    (Path("weights") / "README.md").touch()
    assert releases.default_model() == Path("weights") / "tiny"


def test_demo_shows_the_releases_answers_and_offers_training(
    empty_place: Path, trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a pipe nobody is asked: it says how to train, and trains nothing. (The tests' model reads short requests only.)"""
    monkeypatch.setattr(demo, "PROMPTS", ("List files",))
    monkeypatch.setattr(demo, "COMMANDS", ("List files",))
    assert command_line(["export", str(trained_run.folder.path), "weights/tiny"]) == 0
    assert command_line(["demo"]) == 0
    shown = capfd.readouterr().out
    assert "weights/tiny" in shown and "# List files" in shown
    assert "mlx-codegen demo --train" in shown
    assert not Path("runs").exists()


SHIPPED = sorted(path.parent for path in (Path(__file__).parents[1] / "weights").glob("*/config.json"))
LARGEST_MB = {"tiny": 30, "nano": 3}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_what_ships_opens_answers_and_is_small(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checksums hold, the card is complete, no file is too large for git, and a request gets an answer."""
    files = list(folder.glob("*.safetensors"))
    assert max(file.stat().st_size for file in files) < 16e6
    assert sum(file.stat().st_size for file in files) < LARGEST_MB.get(folder.name, 60) * 1e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("CDLA-Sharing-1.0", "CC BY 4.0", "valid bash", "Known faults"):
        assert words in card
    assert "Write here" not in card
    request = ["generate", "List all files in /tmp", "--model", str(folder), "--temperature", "0", "--max-tokens", "40"]
    assert command_line(request) == 0
    assert len(capsys.readouterr().out.split()) > 3
