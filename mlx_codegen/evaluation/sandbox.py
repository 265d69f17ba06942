"""A place where a script that nobody has read may run: bubblewrap on Linux, sandbox-exec on macOS (DESIGN.md, decision 8).

On Linux every run gets a root of its own in memory: the system's programs read-only, everything else empty and writable,
no network, its own process space, a cleared environment and limits on time, processes, memory, files and output.
When the run ends, everything it made or started is gone.

On macOS there is no private root. The programs see the real file system read-only and may write in one scratch folder,
so absolute paths such as `/srv/data` are moved below that folder in every text that runs (`relocate`).

Commands that a sandbox cannot offer (databases, docker, systemctl, curl, ssh, ...) are the stubs of `data/bash/stubs`.
"""

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlx_codegen.config import repository_folder
from mlx_codegen.errors import UserError

NOBODY = 65534
"""Who runs the sandbox when a superuser starts it: the kernel does not count the superuser's processes."""
SETUP_FAILED = 97
"""Exit status that says that the setup failed, and not the script."""
FOLDERS = ("backup", "backups", "data", "etc", "home", "mnt", "opt", "root", "run", "srv", "storage", "tmp", "usr/local", "var")
"""What exists at the top of the private root, and what `relocate` moves."""
INNER_FOLDERS = (
    *(f"var/{name}" for name in ("cache", "lib", "log", "tmp")),
    *(f"usr/local/{name}" for name in ("bin", "etc", "lib", "sbin", "share")),
)
"""Folders below them that every system has."""
MOVED = re.compile(rf"(?<![\w./~$}}-])/(?={'|'.join(FOLDERS)})(?=(?:{'|'.join(FOLDERS)})(?![\w.-]))")
PROGRAM = "program.py"
INSTALL_HINT = "on Debian and Ubuntu: apt-get install bubblewrap; on Fedora: dnf install bubblewrap"

# Runs inside, before anything that was generated. Its own errors would look like the script's, so it has none to make.
RUNNER = """\
ulimit -t {cpu_seconds} -u {processes} -f {file_blocks} -c 0
ulimit -v {memory_blocks} 2>/dev/null
cd "$HOME" || exit 98
exec bash "$TASK/main.sh"
"""


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float = 10.0
    processes: int = 64
    memory_megabytes: int = 512
    """Address space of each process."""
    disk_megabytes: int = 64
    """The private root, and /dev/shm likewise; a single file may have a quarter."""
    output_bytes: int = 64 * 1024
    """What is kept of each of the two outputs."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    status: int
    """The exit status; minus the signal's number if a signal ended it."""
    stdout: str
    stderr: str
    timed_out: bool

    @property
    def passed(self) -> bool:
        """True if it ended by itself, without an error."""
        return self.status == 0 and not self.timed_out


DEFAULT_LIMITS = Limits()


@cache
def why_unavailable() -> str | None:
    """Returns None where scripts can be run safely, else one line that says what is missing and what to do."""
    if sys.platform == "darwin":
        return None if shutil.which("sandbox-exec") else "sandbox-exec is missing; it is a part of macOS, in /usr/bin"
    if not sys.platform.startswith("linux"):
        return f"there is no sandbox for {sys.platform}; use Linux or macOS"
    if shutil.which("bwrap") is None:
        return f"bubblewrap is not installed; {INSTALL_HINT}"
    outcome = _run({"main.sh": "exit 0"}, DEFAULT_LIMITS)
    if outcome.passed:
        return None
    reason = (outcome.stderr.strip().splitlines() or [f"exit status {outcome.status}"])[0]
    return f"bubblewrap cannot make a sandbox here ({reason}); allow unprivileged user namespaces"


def require_sandbox() -> None:
    """Raises UserError if scripts cannot be run safely on this machine."""
    if reason := why_unavailable():
        raise UserError(f"no sandbox: {reason}")


def run_script(script: str, *, setup: str = "", check: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Runs bash texts in a fresh sandbox: the setup, then the check, which is expected to call `bash "$SCRIPT"`.

    Without a check the script itself is run. Status 97 says that the setup failed. Raises UserError where no sandbox is.
    """
    require_sandbox()
    main = f'source "$TASK/prelude.sh"\n(source "$TASK/setup.sh") || exit {SETUP_FAILED}\nsource "$TASK/check.sh"\n'
    texts = {
        "main.sh": main,
        "prelude.sh": (stub_folder() / "prelude.sh").read_text(encoding="utf-8"),
        "setup.sh": f"{setup}\n",
        "check.sh": 'bash "$SCRIPT"' if check is None else check,
        "script.sh": script,
    }
    return _run(texts, limits)


def run_python(program: str, *, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Runs a Python program in a fresh sandbox, with the standard library alone; UserError where there is none to run it."""
    if reason := why_no_python():
        raise UserError(reason)
    return _run_python(program, limits, _python())


@cache
def why_no_python() -> str | None:
    """Returns None where Python programs can be run safely, else one line that says what is missing."""
    if reason := why_unavailable():
        return f"no sandbox: {reason}"
    return None if _python() else "no Python that starts inside the sandbox; install the system's python3, 3.10 or newer"


@cache
def _python() -> tuple[Path, ...]:
    """The program of a Python that starts inside, and what else the sandbox must show of it; empty where none does.

    First the Python that runs this: of its folder only the program and the standard library, for the folder may be one
    where its owner keeps more. When a superuser's home holds it, nobody can read it; then the system's.
    """
    prefix, version = Path(sys.base_prefix).resolve(), f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = (prefix / "bin" / version, prefix / "lib" / version, *sorted((prefix / "lib").glob("libpython*")))
    for parts in (own, (Path("/usr/bin/python3"),)):
        if _run_python("import sys; sys.exit(sys.version_info < (3, 10))", DEFAULT_LIMITS, parts).passed:
            return parts
    return ()


def _run_python(program: str, limits: Limits, python: tuple[Path, ...]) -> Outcome:
    # -I and -S: neither the person's settings nor installed packages
    main = f'exec "$PYTHON" -I -S -B "$TASK/{PROGRAM}"\n'
    return _run({"main.sh": main, PROGRAM: program}, limits, python)


@cache
def stub_folder() -> Path:
    """Returns a copy of the stubs that everybody may read and run, whatever the rights of the project's folder."""
    folder = Path(tempfile.mkdtemp(prefix="mlx-codegen-stubs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(repository_folder("data") / "bash" / "stubs", folder, dirs_exist_ok=True)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    return folder


def relocate(text: str, root: Path) -> str:
    """Moves the absolute paths that a sandbox owns (`/srv/data`, `/etc/hosts`) below `root`."""
    return MOVED.sub(f"{root}/", text)


def _run(texts: dict[str, str], limits: Limits, python: tuple[Path, ...] = ()) -> Outcome:
    """Writes the texts into a scratch folder and runs `main.sh` among them; `python` as `_python` gives it."""
    with tempfile.TemporaryDirectory(prefix="mlx-codegen-sandbox-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        task = folder / "task"
        task.mkdir()
        runner = RUNNER.format(
            cpu_seconds=int(limits.seconds) + 1,
            processes=limits.processes,
            file_blocks=limits.disk_megabytes * 1024 // 4,
            memory_blocks=limits.memory_megabytes * 1024,
        )
        for file, text in {**texts, "run.sh": runner}.items():
            # Generated text may hold what is no UTF-8; a NUL ends a bash script's line, as it would anywhere else
            (task / file).write_text(text, encoding="utf-8", errors="surrogateescape")
        command = _mac_command(folder, python) if sys.platform == "darwin" else _linux_command(task, limits, python)
        return _wait(command, folder, limits)


def _linux_command(task: Path, limits: Limits, python: tuple[Path, ...]) -> list[str]:
    """The bubblewrap command line: a private root of limited size, with the system's programs in it."""
    size = str(limits.disk_megabytes * 1024 * 1024)
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--uid",
        "0",
        "--gid",
        "0",
        "--hostname",
        "sandbox",
    ]
    command += ["--clearenv", "--size", size, "--tmpfs", "/"]
    # Not /usr/local: what the machine's owner put there is no part of a script's world, and scripts install programs there
    parts = [path for path in sorted(Path("/usr").iterdir()) if path.name != "local"]
    for path in (*parts, *(Path("/", name) for name in ("bin", "sbin", "lib", "lib32", "lib64"))):
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    # Debian's awk is a link through /etc/alternatives; other systems keep none
    command += [
        "--ro-bind-try",
        "/etc/alternatives",
        "/etc/alternatives",
        "--ro-bind-try",
        "/etc/ld.so.cache",
        "/etc/ld.so.cache",
    ]
    # /dev and /dev/shm would be two more disks to fill
    command += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for folder in (*FOLDERS, *INNER_FOLDERS):
        command += ["--dir", f"/{folder}"]
    command += ["--ro-bind", str(stub_folder()), "/run/stubs", "--ro-bind", str(task), "/run/task"]
    for part in python:
        command += ["--ro-bind-try", str(part), str(part)]
    for name, value in _environment("", "/run/task", "/run/stubs", python).items():
        command += ["--setenv", name, value]
    return [*command, "bash", "/run/task/run.sh"]


def _mac_command(folder: Path, python: tuple[Path, ...]) -> list[str]:
    """The sandbox-exec command line: everything may be read but what is private, nothing written outside `folder`, no network."""
    root = (folder / "root").resolve()
    task = (folder / "task").resolve()
    for name in (*FOLDERS, *INNER_FOLDERS):
        (root / name).mkdir(parents=True, exist_ok=True)
    for file in task.iterdir():
        file.write_text(relocate(file.read_text(encoding="utf-8"), root), encoding="utf-8")
    profile = "\n".join(
        [
            "(version 1)(allow default)(deny network*)(deny file-write*)",
            f'(allow file-write* (subpath "{root}") (literal "/dev/null") (literal "/dev/tty") (subpath "/dev/fd"))',
            '(deny file-read* (subpath "/Users") (subpath "/Volumes"))',
            f'(allow file-read* (subpath "{root}") (subpath "{task}") (subpath "{stub_folder().resolve()}"))',
            *(f'(allow file-read* (subpath "{part}"))' for part in python),
        ]
    )
    environment = _environment(str(root), str(task), str(stub_folder().resolve()), python)
    return [
        "sandbox-exec",
        "-p",
        profile,
        "env",
        "-i",
        *(f"{k}={v}" for k, v in environment.items()),
        "bash",
        str(task / "run.sh"),
    ]


def _environment(root: str, task: str, stubs: str, python: tuple[Path, ...]) -> dict[str, str]:
    """All the variables that a run sees."""
    return {
        **({"PYTHON": str(python[0])} if python else {}),
        "PATH": f"{stubs}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": f"{root}/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "TMPDIR": f"{root}/tmp",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "TASK": task,
        "SCRIPT": f"{task}/script.sh",
        "CALLS": f"{root}/run/calls",
        "ANSWERS": f"{root}/run/answers",
        "INPUTS": f"{root}/run/inputs",
    }


def _wait(command: list[str], folder: Path, limits: Limits) -> Outcome:
    """Starts the command, waits for it no longer than it may take, and reads what it printed."""
    # Files and not pipes: the limit on file sizes then bounds the output too, and a daemon that keeps it open holds up nobody
    outputs = [folder / "stdout", folder / "stderr"]
    superuser = os.geteuid() == 0
    with outputs[0].open("wb") as stdout, outputs[1].open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            # bubblewrap itself is a process inside: its variables could be read there
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            user=NOBODY if superuser else None,
            group=NOBODY if superuser else None,
            extra_groups=[] if superuser else None,
        )
        try:
            status = process.wait(timeout=limits.seconds)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # Also after the end: on macOS a process left behind would live on
            _kill_group(process.pid)
            status = process.wait()
    texts = [path.open("rb").read(limits.output_bytes).decode("utf-8", errors="replace") for path in outputs]
    # bwrap and bash report a signal as 128 + its number
    return Outcome(128 - status if 128 < status < 192 else status, texts[0], texts[1], timed_out)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody left of it
