"""A script in the sandbox does its work and nothing else: every way out that we know of is tried."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_codegen.evaluation import sandbox
from mlx_codegen.evaluation.sandbox import Limits, Outcome, relocate, run_script, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=f"no sandbox: {why_unavailable()}")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the private root is bubblewrap's")


def test_script_runs_between_setup_and_check() -> None:
    """Setup makes the world, the script works in it, the check sees outputs, files and status."""
    outcome = run_script(
        'echo "found $(cat /srv/in.txt)"; echo oops >&2; echo done > "$1"; exit 3',
        setup="echo seven > /srv/in.txt",
        check='run /tmp/out; [ "$status" = 3 ] && grep -q "found seven" "$OUT" && grep -q oops "$ERR" && grep -q done /tmp/out',
    )
    assert outcome.passed, outcome


def test_failing_check_and_failing_setup_are_told_apart() -> None:
    """A broken setup is a fault of the task and must not count against a script."""
    assert run_script("exit 0", check="run && false") == Outcome(1, "", "", False)
    assert run_script("exit 0", setup="false").status == sandbox.SETUP_FAILED
    assert run_script("exit 0", setup="exit 5").status == sandbox.SETUP_FAILED


def test_without_a_check_the_script_itself_counts() -> None:
    """Status and both outputs are the script's."""
    assert run_script("echo a; echo b >&2; exit 4") == Outcome(4, "a\n", "b\n", False)


def test_every_run_starts_from_nothing() -> None:
    """What one script leaves behind, the next does not find."""
    assert run_script("echo x > /srv/left; echo y > /root/left; echo z > /tmp/left").passed
    assert run_script("ls -A /srv /root | grep left; test ! -e /srv/left -a ! -e /root/left -a ! -e /tmp/left").passed


def test_nothing_outside_is_written(tmp_path: Path) -> None:
    """The person's files are out of reach: neither there to read nor to change."""
    (tmp_path / "precious").write_text("mine")
    target = tmp_path / "precious"
    outcome = run_script(
        f"echo overwritten > {target}; rm -rf {target} {tmp_path}; echo x > {Path.home()}/.evil; touch /usr/bin/evil"
    )
    assert target.read_text() == "mine"
    assert not (Path.home() / ".evil").exists() and not Path("/usr/bin/evil").exists()
    assert "Read-only file system" in outcome.stderr or sys.platform == "darwin"


def test_programs_of_the_system_are_read_only() -> None:
    """Neither removing nor replacing a program works."""
    assert run_script("! rm /usr/bin/env && ! cp /bin/ls /usr/bin/env && test -x /usr/bin/env").passed


def test_home_folder_cannot_be_read() -> None:
    """No keys, no history, no project: the home folder, this file's folder and the environment stay outside."""
    outcome = run_script(f"cat {__file__}; ls -A {Path.home()} {Path(__file__).parent}; env; cat /etc/shadow /etc/passwd")
    assert "test_home_folder_cannot_be_read" not in outcome.stdout
    assert "conftest.py" not in outcome.stdout
    assert "root:x:" not in outcome.stdout or sys.platform == "darwin"


def test_environment_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and passwords of the person's shell are not handed on."""
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    assert "hunter2" not in run_script("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").stdout


def test_no_socket_reaches_this_machine() -> None:
    """A server that listens here hears nothing of a script that calls it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        assert not run_script(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo hello >&3").passed
        with pytest.raises(TimeoutError):
            server.accept()


@linux
def test_no_network_at_all() -> None:
    """There is no way to another machine either: a loopback interface and nothing more."""
    assert run_script("test $(ls /sys/class/net 2>/dev/null | grep -vc lo) = 0; exec 3<>/dev/tcp/192.0.2.1/80").status != 0
    assert "unreachable" in run_script("exec 3<>/dev/tcp/192.0.2.1/80").stderr


def test_forking_without_end_stops() -> None:
    """A fork bomb comes to an end, and nothing of it is left."""
    run_script("bomb() { bomb | bomb & }; bomb; wait; echo survived", limits=Limits(seconds=5, processes=32))
    assert processes_with("bomb()") == 0


@linux
def test_no_more_processes_than_the_limit() -> None:
    script = "for i in {1..100}; do sleep 60 & done; echo all of them"
    outcome = run_script(script, limits=Limits(seconds=3, processes=32))
    assert "Resource temporarily unavailable" in outcome.stderr and "all of them" not in outcome.stdout


def processes_with(text: str) -> int:
    """How many processes of this machine have the text in their command line."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout if has_ps() else ""
    return sum(text in line for line in listing.splitlines())


def has_ps() -> bool:
    return any((Path(folder) / "ps").exists() for folder in os.environ["PATH"].split(":"))


@linux
def test_disk_cannot_be_filled() -> None:
    """Neither by one file nor by many, neither on the root nor in shared memory."""
    limits = Limits(seconds=10, disk_megabytes=16)
    outcome = run_script(
        "for i in {1..40}; do head -c 2M /dev/zero > /srv/$i || break; done; du -sm /srv | cut -f1;"
        "for i in {1..40}; do head -c 2M /dev/zero > /dev/shm/$i || break; done; du -sm /dev/shm | cut -f1;"
        "touch /dev/evil",
        limits=limits,
    )
    assert all(0 < int(megabytes) <= 16 for megabytes in outcome.stdout.split()) and len(outcome.stdout.split()) == 2
    assert "No space left" in outcome.stderr and not outcome.passed


def test_one_file_and_the_output_have_a_limit() -> None:
    """An endless file or an endless print ends by itself, and no more than the limit is kept."""
    outcome = run_script("yes", limits=Limits(seconds=10, disk_megabytes=16, output_bytes=1000))
    assert outcome.stdout == "y\n" * 500 and not outcome.passed and not outcome.timed_out
    assert not run_script("head -c 20M /dev/zero > /tmp/large", limits=Limits(disk_megabytes=16)).passed


@linux  # macOS has no limit on address space
def test_memory_has_a_limit() -> None:
    """A string that doubles for ever ends the script, not the machine."""
    outcome = run_script("x=1234567890; while :; do x=$x$x; done", limits=Limits(seconds=20, memory_megabytes=128))
    assert not outcome.passed and not outcome.timed_out
    assert "cannot allocate" in outcome.stderr


def test_time_has_a_limit() -> None:
    """Neither sleeping nor counting goes on past the limit."""
    for endless in ("while :; do :; done", "command -p sleep 600 || /bin/sleep 600"):
        begun = time.monotonic()
        outcome = run_script(endless, limits=Limits(seconds=1))
        assert outcome.timed_out and not outcome.passed
        assert time.monotonic() - begun < 30


def test_a_daemon_does_not_outlive_the_run() -> None:
    """A process that detaches itself in every way that bash knows is gone when the run is over."""
    mark = f"7{os.getpid()}"
    script = f"(trap '' HUP TERM INT; setsid nohup /bin/sleep {mark} </dev/null >/dev/null 2>&1 & disown) & exit 0"
    begun = time.monotonic()
    assert run_script(script).passed
    assert time.monotonic() - begun < 8, "the run must not wait for it"
    assert processes_with(f"sleep {mark}") == 0


@linux
def test_own_process_space() -> None:
    """A script neither sees nor can signal processes outside."""
    outcome = run_script(f"test ! -e /proc/{os.getpid()} || test {os.getpid()} -lt 50; kill -0 {os.getpid()}")
    assert not outcome.passed
    assert run_script("kill -9 -1; exit 0").status != 0, "it may end itself"


def test_script_cannot_pass_its_own_check() -> None:
    """The check runs in a shell of its own: killing it, or forging what it reads, fails."""
    check = 'run; [ "$status" = 0 ] && [ -e /srv/made ]'
    for script in ('kill -9 "$PPID"', "exit 0", 'echo "touch /srv/made" > "$TASK/check.sh"', "true() { :; }; exit 0"):
        assert not run_script(script, check=check).passed, script
    assert run_script("touch /srv/made", check=check).passed


def test_stubs_record_and_answer() -> None:
    """A command that the sandbox has not is recorded, answers plausibly, and can be told what to answer."""
    script = 'docker push "$1"; curl -sf http://localhost/ && echo up; systemctl restart "my app"'
    check = """run shop:1.2
        called '^docker push shop:1\\.2$' && called '^systemctl restart my app$' &&
        ! called 'docker pull' && ! grep -q up "$OUT" """
    assert run_script(script, setup="answer curl <<< 'exit 7'", check=check).passed


def test_sleeping_costs_no_time_and_ends_endless_loops() -> None:
    """`while true; do ...; sleep 60; done` is ended by its sleeps, so that a check can look at what it did."""
    begun = time.monotonic()
    script = "while true; do date >> /srv/beats; sleep 60; done"
    outcome = run_script(script, check='SLEEP_LIMIT=3 run; [ "$(wc -l < /srv/beats)" = 3 ]')
    assert outcome.passed and time.monotonic() - begun < 8


def test_text_that_is_no_text_is_no_fault_of_ours() -> None:
    """A model may write any bytes: NUL, half characters, nothing at all."""
    assert run_script("").passed
    assert run_script("echo a\0b").status != 0
    assert run_script("echo \udcff").status == 0


def test_outcome_tells_of_signals() -> None:
    """A script that was killed is not taken for one that exited."""
    assert run_script("kill -SEGV $$").status in (139, -11)


def test_paths_are_moved_for_systems_without_a_private_root() -> None:
    """On macOS every path that the sandbox owns is moved below its folder; others stay, and so do options and URLs."""
    root = Path("/private/box")
    text = (
        'cp -a /srv/data "/etc/hosts" $HOME/etc https://a.b/srv/x /usr/bin/env >/dev/null; cd /data; x=/home/u;ls ./etc /etcetera'
    )
    assert relocate(text, root) == (
        'cp -a /private/box/srv/data "/private/box/etc/hosts" $HOME/etc https://a.b/srv/x /usr/bin/env >/dev/null; '
        "cd /private/box/data; x=/private/box/home/u;ls ./etc /etcetera"
    )


def test_missing_bubblewrap_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program there is no sandbox, and nothing is run some other way."""
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox.why_unavailable.cache_clear()
    try:
        reason = sandbox.why_unavailable()
        assert (reason is not None and "install" in reason) or sys.platform == "darwin"
        with pytest.raises(sandbox.UserError, match="no sandbox: "):
            run_script("echo hi")
    finally:
        monkeypatch.undo()
        sandbox.why_unavailable.cache_clear()
