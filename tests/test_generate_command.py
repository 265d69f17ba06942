"""`mlx-codegen generate` with checks: exit statuses that scripts can rely on, files that are safe, nothing run unasked."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import TrainedRun

import mlx_codegen
from mlx_codegen.cli.answer import refuse_to_overwrite, run_in_sandbox, save_script, show_checks
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation.sandbox import why_unavailable
from mlx_codegen.generation.verify import shellcheck_path, syntax_error
from mlx_codegen.training.metrics_log import write_atomically

ROOT = Path(__file__).parents[1]
REQUEST = "Create a backup script"
BAD = ["--temperature", "2", "--top-k", "0", "--top-p", "1"]  # nearly noise
needs_sandbox = pytest.mark.skipif(why_unavailable() is not None, reason=f"no sandbox: {why_unavailable()}")


@pytest.fixture
def model(trained_run: TrainedRun) -> list[str]:
    return ["--model", str(trained_run.folder.path)]


def test_check_tells_by_exit_status(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With --check, 1 means that the text on stdout is no valid bash, 0 that it is; the remarks are not on stdout."""
    statuses = set()
    for seed in range(8):
        options = ["--seed", str(seed), "--max-tokens", "25", "--best-of", "1"]
        status = command_line(["generate", REQUEST, *model, *BAD, *options, "--check"])
        captured = capsys.readouterr()
        assert status == (1 if syntax_error(captured.out) else 0)
        assert ("not valid bash" in captured.err) == (status == 1)
        assert "valid bash" in captured.err and "✓" not in captured.out
        statuses.add(status)
    assert statuses == {0, 1}, "take other seeds"


def test_without_check_a_pipe_gets_text_and_status_zero(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is checked that nobody asked for."""
    for seed in range(3):
        options = ["--seed", str(seed), "--max-tokens", "25", "--best-of", "1"]
        assert command_line(["generate", REQUEST, *model, *BAD, *options]) == 0
        assert capsys.readouterr().err == ""


def test_unless_told_otherwise_the_best_of_eight(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody has to know to ask for: the same text as --best-of 8, and where none parses, the likeliest and a line."""
    found = set()
    for seed in range(4):
        arguments = ["generate", REQUEST, *model, *BAD, "--seed", str(seed), "--max-tokens", "25"]
        assert command_line(arguments) == 0
        usual = capsys.readouterr()
        status = command_line([*arguments, "--best-of", "8"])
        asked = capsys.readouterr()
        assert usual.out.startswith("#!/bin/bash\n") and usual.err == asked.err
        assert usual.out == asked.out if status == 0 else "none of 8 texts is valid bash" in usual.err
        found.add(status)
        if status:
            assert command_line([*arguments, "--check"]) == 1
            capsys.readouterr()
    assert 0 in found


@pytest.mark.parametrize("option", [["--temperature", "0"], ["--plain"]])
def test_one_text_where_there_is_nothing_to_choose(
    option: list[str], trained_run: TrainedRun, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal texts, and text that is no script, are written once and come as the library gives them."""
    assert command_line(["generate", REQUEST, *model, *option, "--seed", "4", "--max-tokens", "15"]) == 0
    keywords: dict[str, float] = {"temperature": 0} if option[0] == "--temperature" else {"plain": True}
    text = mlx_codegen.load(trained_run.folder.path).generate(REQUEST, seed=4, max_tokens=15, **keywords)
    assert capsys.readouterr().out.removesuffix("\n") == text.removesuffix("\n")


@pytest.mark.parametrize("options", [["--valid"], ["--best-of", "6"]])
def test_valid_and_best_of_give_valid_bash_or_status_one(
    options: list[str], model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Never broken text: stdout is empty where nothing parses."""
    for seed in range(5):
        status = command_line(["generate", REQUEST, *model, *options, "--seed", str(seed), "--max-tokens", "25"])
        captured = capsys.readouterr()
        if status == 0:
            assert syntax_error(captured.out) is None and captured.out.startswith("#!/bin/bash\n")
        else:
            assert status == 1 and captured.out == "" and "is valid bash" in captured.err


def test_stdin_is_continued_as_it_is(trained_run: TrainedRun) -> None:
    """A begun script comes back with its continuation, byte for byte at the start."""
    begun = "#!/bin/bash\n# Rename files\n\nfor f in *.txt; do\n    mv "
    arguments = ["generate", "--stdin", "--model", str(trained_run.folder.path), "--seed", "1", "--max-tokens", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", *arguments], input=begun.encode(), cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout.decode().startswith(begun) and len(done.stdout) > len(begun) + 1
    bad = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", *arguments], input=b"\xff\xfe", cwd=ROOT, capture_output=True, check=False
    )
    assert bad.returncode == 2 and bad.stderr == b"error: the standard input is not UTF-8 text\n" and bad.stdout == b""


def test_save_writes_a_plain_file_once(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mode 0644 unless --executable; what is printed is what is saved; an existing file stays unless --force."""
    file = tmp_path / "backup.sh"
    arguments = ["generate", REQUEST, *model, "--seed", "1", "--max-tokens", "20", "--save", str(file)]
    assert command_line(arguments) == 0
    first = capsys.readouterr()
    assert file.read_text() == first.out and stat.S_IMODE(file.stat().st_mode) == 0o644
    assert f"saved: {file}" in first.err
    file.write_text("precious")
    assert command_line(arguments) == 2
    refused = capsys.readouterr()
    assert "the file exists; name another one, or add --force" in refused.err
    assert refused.out == "", "it is said before anything is written"
    assert file.read_text() == "precious"
    assert command_line([*arguments, "--force", "--executable"]) == 0
    assert file.read_text() == first.out and stat.S_IMODE(file.stat().st_mode) == 0o755
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.sh"]


def test_save_does_not_replace_a_file_that_appears_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the write, somebody else may have made the file."""
    file = tmp_path / "a.sh"
    refuse_to_overwrite(file, force=False)
    file.write_text("theirs")
    monkeypatch.setattr("mlx_codegen.cli.answer.refuse_to_overwrite", lambda *_: None)
    with pytest.raises(UserError, match="the file exists"):
        save_script("echo ours", file, executable=False, force=False)
    assert file.read_text() == "theirs" and [path.name for path in tmp_path.iterdir()] == ["a.sh"]


BAD_LINES: dict[str, tuple[list[str], str]] = {
    "no prompt": ([], "give one prompt"),
    "two prompts": (["a", "--prompt", "b"], "give one prompt"),
    "prompt and stdin": (["a", "--stdin"], "give one prompt"),
    "empty prompt": (["  "], "the prompt is empty"),
    "long prompt": (["word " * 500], "the model reads at most"),
    "no tokens": (["a", "--max-tokens", "0"], "max_tokens"),
    "negative temperature": (["a", "--temperature", "-1"], "temperature"),
    "top-p above one": (["a", "--top-p", "1.5"], "top_p"),
    "best of none": (["a", "--best-of", "0"], "best-of"),
    "force without save": (["a", "--force"], "belong to --save FILE"),
    "folder": (["a", "--save", "/"], "that is a folder"),
    "no such folder": (["a", "--save", "/nowhere/a.sh"], "there is no folder /nowhere"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_input_is_one_line(case: str, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line on stderr, nothing on stdout."""
    options, message = BAD_LINES[case]
    assert command_line(["generate", *options, *model]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_run_needs_somebody_to_answer(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe nothing is run: there is nobody to look at the script first."""
    status = command_line(["generate", REQUEST, *model, "--seed", "1", "--max-tokens", "10", "--run"])
    assert status == 2
    assert "--run asks before it runs a script" in capsys.readouterr().err or why_unavailable()


@needs_sandbox
def test_run_shows_output_and_status_and_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the script printed is shown with its escape sequences made visible; files outside are out of reach."""
    script = f"#!/bin/bash\nprintf 'hi \\033[2J\\n'; echo oops >&2; touch {tmp_path}/x; exit 3\n"
    assert run_in_sandbox(script, ask=False) == 3
    captured = capsys.readouterr()
    assert captured.out == "hi ^[[2J\n" and "oops" in captured.err and "status 3" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_findings_are_shown_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Line, severity and what shellcheck says; broken scripts get bash's own reason."""
    assert not show_checks("#!/bin/bash\nif true; then\n")
    assert "not valid bash: line 3: syntax error: unexpected end of file" in capsys.readouterr().err
    assert show_checks("#!/bin/bash\nrm $1\n")
    shown = capsys.readouterr().err
    assert "line 2, info: Double quote" in shown if shellcheck_path() else "with shellcheck installed" in shown


def test_closed_pipe_is_no_error(trained_run: TrainedRun) -> None:
    """`generate ... | head -1` ends quietly."""
    program = f"{sys.executable} -m mlx_codegen generate '{REQUEST}' --model {trained_run.folder.path} --seed 1 | head -n 1"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, check=False, env={**os.environ})
    assert done.stdout == b"#!/bin/bash\n" and done.stderr == b""


def test_save_replaces_no_device(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Root would otherwise turn /dev/null into a script; a pipe stands for it here."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert command_line(["generate", "x", *model, "--save", str(pipe), "--force"]) == 2
    assert "that is a device or a pipe; name a file" in capsys.readouterr().err
    with pytest.raises(UserError, match="that is a device or a pipe"):
        write_atomically(pipe, b"text")
    assert pipe.is_fifo()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_lead_nowhere(closed: str, trained_run: TrainedRun) -> None:
    """As cron and others start programs; the prompt from a closed input is empty, which is a mistake."""
    prompt = "--stdin" if closed == "<&-" else f"'{REQUEST}'"
    program = f"{sys.executable} -m mlx_codegen generate {prompt} --model {trained_run.folder.path} --seed 1 --max-tokens 5"
    done = subprocess.run(["bash", "-c", f"{program} {closed}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if closed == "<&-" else 0) and "Traceback" not in done.stderr
    assert ("the prompt is empty" in done.stderr) == (closed == "<&-")
    assert bool(done.stdout) == (closed == "2>&-")


def test_pipes_hold_utf_8_in_every_locale(trained_run: TrainedRun) -> None:
    """Scripts are UTF-8 whatever the terminal of the moment can show."""
    options = ["--seed", "1", "--max-tokens", "3", "--model", str(trained_run.folder.path)]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", "generate", "Größe 🎉", *options],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and done.stdout.decode("utf-8").startswith("#!/bin/bash\n# Größe 🎉\n")


def test_library_and_command_line_agree(trained_run: TrainedRun, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--best-of 1 is the plain text of that seed."""
    assert command_line(["generate", REQUEST, *model, "--seed", "9", "--max-tokens", "15", "--best-of", "1"]) == 0
    text = mlx_codegen.load(trained_run.folder.path).generate(REQUEST, seed=9, max_tokens=15)
    assert capsys.readouterr().out.removesuffix("\n") == text.removesuffix("\n")
