"""What is done with a written script, in `generate` and `chat` alike: show it, check it, save it, run it in the sandbox."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.syntax import Syntax

FINDINGS_SHOWN = 6


def write_plain(pieces: Iterable[str]) -> str:
    """Writes the text and nothing else, as it comes; returns it."""
    text = ""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        text += piece
    if not text.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
    return text


def show_live(pieces: Iterator[str], origin: str) -> str:
    """Shows a text highlighted, line by line as it comes, then one quiet line of facts; returns the text."""
    from rich.console import Console

    console = Console()
    syntax = _syntax()
    start = time.perf_counter()
    count, whole, line = -1, "", ""  # the first piece is the prompt's own text
    for piece in pieces:
        count += 1
        whole += piece
        line += piece
        *finished, line = line.split("\n")
        for text in finished:
            _print_line(console, syntax, text)
    if line:
        _print_line(console, syntax, line)
    seconds = time.perf_counter() - start
    console.print(f"{count} tokens · {seconds:.1f} s · {count / seconds:,.0f} tokens/s · {origin}", style="dim", highlight=False)
    return whole


def show_text(text: str) -> None:
    """Shows a whole text, highlighted."""
    from rich.console import Console

    console, syntax = Console(), _syntax()
    for line in text.removesuffix("\n").split("\n"):
        _print_line(console, syntax, line)


def _syntax() -> "Syntax":
    from rich.syntax import Syntax

    return Syntax("", "bash", theme="ansi_dark", background_color="default")


def _print_line(console: "Console", syntax: "Syntax", line: str) -> None:
    console.print(syntax.highlight(visible_controls(line)), end="", soft_wrap=True)


def visible_controls(text: str) -> str:
    """Terminal control characters become visible (`^[`, `\\x9b`), so that generated text cannot steer the terminal."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    number = ord(character)
    if (number < 32 and character != "\t") or number == 127:
        return f"^{chr(number ^ 64)}"
    return f"\\x{number:02x}" if 128 <= number < 160 else character


def show_checks(script: str) -> bool:
    """Shows what `bash -n` and, where it is present, shellcheck say of a script; returns whether it parses."""
    from rich.console import Console

    from mlx_codegen.generation.verify import shellcheck, shellcheck_path, syntax_error

    console = Console(highlight=False, stderr=not sys.stdout.isatty())
    if error := syntax_error(script):
        console.print(f"✗ this is not valid bash: {visible_controls(error)}", style="red", markup=False, soft_wrap=True)
        return False
    if shellcheck_path() is None:
        console.print("✓ valid bash (with shellcheck installed, more would be checked)", style="dim green", soft_wrap=True)
        return True
    findings = shellcheck([script])[0]
    if not findings:
        console.print("✓ valid bash, and shellcheck has nothing to say", style="dim green", soft_wrap=True)
        return True
    console.print("✓ valid bash; shellcheck says:", style="dim green")
    for finding in findings[:FINDINGS_SHOWN]:
        style = "yellow" if finding.severity in ("error", "warning") else "dim"
        text = f"  line {finding.line}, {finding.severity}: {visible_controls(finding.message)} (SC{finding.code})"
        console.print(text, style=style, markup=False, soft_wrap=True)
    if len(findings) > FINDINGS_SHOWN:
        console.print(f"  and {len(findings) - FINDINGS_SHOWN} more", style="dim")
    return True


def refuse_to_overwrite(path: Path, force: bool, option: str = "--save") -> None:
    """Raises UserError where a file could not be saved: better before it is written than after."""
    if path.is_dir():
        raise UserError(f"{option} {path}: that is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: that is a device or a pipe; name a file")
    if path.exists() and not force:
        raise UserError(f"{option} {path}: the file exists; name another one, or add --force")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")


def save_script(script: str, path: Path, *, executable: bool, force: bool) -> None:
    """Writes a script; not executable unless asked for."""
    save_text(script if script.endswith("\n") else f"{script}\n", path, mode=0o755 if executable else 0o644, force=force)


def save_text(text: str, path: Path, *, mode: int = 0o644, force: bool, option: str = "--save") -> None:
    """Writes a file, whole or not at all, never over another one unless forced; says so on stderr."""
    refuse_to_overwrite(path, force, option)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        if force:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)  # unlike a rename, this cannot take the place of a file that has just appeared
            except FileExistsError:
                raise UserError(f"{option} {path}: the file exists; name another one, or add --force") from None
    finally:
        temporary.unlink(missing_ok=True)
    print(f"saved: {path}", file=sys.stderr)


def run_in_sandbox(script: str, *, ask: bool = True) -> int:
    """Shows a script, asks, runs it in the sandbox and shows what it printed; returns its exit status.

    The sandbox has no network and none of the person's files. Raises UserError where there is none.
    """
    from rich.console import Console

    from mlx_codegen.evaluation.sandbox import require_sandbox, run_script

    require_sandbox()
    console = Console(highlight=False, stderr=True)
    if ask:
        if not sys.stdin.isatty():
            raise UserError("--run asks before it runs a script, and nobody is there to answer; use it on a terminal")
        console.rule("to be run in the sandbox: no network, none of your files")
        console.print(visible_controls(script).replace("^J", "\n"), markup=False, soft_wrap=True)
        if not typer.confirm("Run it?", default=False, err=True):
            console.print("not run", style="dim")
            return 0
    outcome = run_script(script)
    for stream, text in ((sys.stdout, outcome.stdout), (sys.stderr, outcome.stderr)):
        for line in text.splitlines():
            print(visible_controls(line), file=stream)
    how = "took too long and was stopped" if outcome.timed_out else f"ended with status {outcome.status}"
    console.print(f"the script {how}; nothing outside the sandbox was changed", style="dim", soft_wrap=True)
    return outcome.status
