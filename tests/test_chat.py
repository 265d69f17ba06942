"""`mlx-codegen chat` and `compare-temperatures`: a session that a mistake or Ctrl-C does not end."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import TrainedRun

import mlx_codegen
from mlx_codegen.cli import chat
from mlx_codegen.cli.chat import COMMANDS, Session, answer
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.errors import UserError

ROOT = Path(__file__).parents[1]
REQUEST = "Create a backup script"


def in_a_pipe(trained_run: TrainedRun, *typed: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    arguments = ["chat", "--model", str(trained_run.folder.path), "--max-tokens", "15", *options]
    return subprocess.run(
        [sys.executable, "-m", "mlx_codegen", *arguments],
        input="".join(f"{line}\n" for line in typed),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_session_in_a_pipe(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Requests are answered, settings hold, mistakes are one line each, and the session goes on after every one."""
    file = tmp_path / "last.sh"
    done = in_a_pipe(
        trained_run,
        "/save early.sh", "/seed 3", REQUEST, "/temperature hot", "/temperature -1", "/brew", "/seed 3", "/again",
        "/temperature 0", "/again", "/again", f"/save {file}", f"/save {file}", "/top-k", "/quit", "never read",
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.count(f"#!/bin/bash\n# {REQUEST}\n") == 4 and "never read" not in done.stdout
    texts = [f"#!/bin/bash\n# {REQUEST}\n{text}" for text in done.stdout.split(f"#!/bin/bash\n# {REQUEST}\n")[1:]]
    engine = mlx_codegen.load(trained_run.folder.path)
    assert texts[0] == texts[1] and texts[0].rstrip("\n") == engine.generate(REQUEST, seed=3, max_tokens=15).rstrip("\n")
    assert texts[2] == texts[3] and file.read_text() == texts[3]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5 and "nothing is written yet" in errors[0] and "takes a number" in errors[1]
    assert "temperature" in errors[2] and "no command /brew" in errors[3] and "the file exists" in errors[4]
    assert "top-k: 50" in done.stderr


def test_no_odd_value_ends_a_session_in_a_pipe(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Digits that are no numbers, names that are no files, homes of nobody: a line each, and the next request is answered."""
    done = in_a_pipe(
        trained_run,
        "/seed ²", "/seed " + "9" * 5000, f"/seed {2**64}", REQUEST, f"/save {tmp_path}/{'a' * 300}", "/save ~nobody-here/a.sh",
        "/model ~nobody-here/m", "/save a\0b", f"/save {tmp_path}/last\\", "/seed 3", "/again",
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout.count(f"# {REQUEST}\n") == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 7 and "seed" in errors[2] and "name another file" in errors[3]
    assert [file.name for file in tmp_path.iterdir()] == ["last\\"]


def session(trained_run: TrainedRun) -> Session:
    sampling = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "max_tokens": 10}
    return Session(mlx_codegen.load(trained_run.folder.path), sampling, 1)


def test_more_goes_on_where_the_text_stopped(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written stays, byte for byte, at the start of what comes."""
    mine = session(trained_run)
    answer(mine, REQUEST)
    before = mine.text
    answer(mine, "/more")
    assert mine.text.startswith(before) and len(mine.text) > len(before)


def test_what_was_written_before_an_interrupt_is_kept(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a text loses nothing of it: /more and /save have it."""
    mine = session(trained_run)
    pieces = mine.engine.stream(REQUEST, seed=1, max_tokens=10)
    start = [next(pieces), next(pieces)]

    def interrupted(*arguments: object, **keywords: object) -> "object":
        yield from start
        raise KeyboardInterrupt

    monkeypatch.setattr(mine.engine, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer(mine, REQUEST)
    assert mine.text == "".join(start)


def test_a_request_may_begin_with_a_slash(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """`//etc ...` asks for what begins with /etc."""
    mine = session(trained_run)
    answer(mine, "//etc backup")
    assert mine.text.startswith("#!/bin/bash\n# /etc backup\n")
    answer(mine, "/command list files")
    assert mine.text.startswith("# list files\n")
    with pytest.raises(UserError, match=r"/save backup\.sh"):
        answer(mine, "/save")


def test_every_command_has_help(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """/help names them all."""
    answer(session(trained_run), "/help")
    shown = capsys.readouterr().err
    assert all(f"/{name}" in shown for name in COMMANDS)


def test_terminal_session_survives_ctrl_c(trained_run: TrainedRun, tmp_path: Path) -> None:
    """On a real terminal: Ctrl-C at the prompt and in a text, then a request that is answered, then Ctrl-D."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    arguments = ["chat", "--model", str(trained_run.folder.path), "--max-tokens", "2000", "--temperature", "1.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_codegen", *arguments],
        stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=ROOT, start_new_session=True,
        preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(follower)
    shown = read_until(leader, "›")
    os.write(leader, b"half a line\x03")
    os.write(leader, b"Create it\r")
    shown += read_until(leader, "# Create it")
    os.write(leader, b"\x03")
    shown += read_until(leader, "›", "stopped", "tokens/s")
    os.write(leader, b"/help\r")
    shown += read_until(leader, "ends the session")
    os.write(leader, b"\x04\x04")  # the prompt may not be there yet when the first one comes
    os.write(leader, b"\x04") if "›" in read_until(leader, "›", ends=True) else None
    read_until(leader, "never", ends=True)
    assert process.wait(timeout=20) == 0
    os.close(leader)
    assert "Traceback" not in shown
    assert "Create it" in (tmp_path / "mlx-codegen" / "history").read_text()


def own_terminal() -> None:
    """Makes the child's stdin its controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(leader: int, *wanted: str, ends: bool = False) -> str:
    """What the terminal shows until one of the texts appears (or the program ends)."""
    shown, deadline = "", time.monotonic() + 40
    while time.monotonic() < deadline and not any(text in shown for text in wanted):
        if select.select([leader], [], [], 0.2)[0]:
            try:
                block = os.read(leader, 65536)
            except OSError:
                return shown
            if not block:
                return shown
            shown += block.decode(errors="replace")
            if "\x1b[6n" in shown[-20:]:  # prompt_toolkit asks where the cursor is
                os.write(leader, b"\x1b[1;1R")
    assert ends or any(text in shown for text in wanted), shown
    return shown


def test_history_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place follows XDG_STATE_HOME."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert chat.history_file() == tmp_path / "mlx-codegen" / "history"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert chat.history_file() == Path.home() / ".local" / "state" / "mlx-codegen" / "history"


@pytest.mark.parametrize("columns", ["40", "160"])
def test_temperatures_side_by_side(columns: str, trained_run: TrainedRun) -> None:
    """Each column is the text that `generate` gives at that temperature; a narrow terminal puts them below each other."""
    arguments = ["compare-temperatures", REQUEST, "0", "1.2", "--model", str(trained_run.folder.path), "--seed", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_codegen", *arguments, "--max-tokens", "8"],
        env={**os.environ, "COLUMNS": columns, "NO_COLOR": "1"}, capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines()[:-1])) <= int(columns)
    assert done.stdout.count("# Create a backup") == 2 and "0 · " in done.stdout and "1.2 · " in done.stdout
    assert done.stdout.count("┏") == (2 if columns == "40" else 1)


def test_compare_temperatures_refuses_bad_input(trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    model = ["--model", str(trained_run.folder.path)]
    for arguments, message in (
        (["x", "-1"], "o such option"),
        (["x", "hot"], "valid number"),
        (["x", *["1"] * 9], "eight"),
        (["  "], "empty"),
    ):
        assert command_line(["compare-temperatures", *arguments, *model]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
