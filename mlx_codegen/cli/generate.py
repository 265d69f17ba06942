"""`mlx-codegen generate`: one request, one script."""

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mlx_codegen.errors import UserError


def generate(
    prompt: Annotated[str | None, typer.Argument(help='What you want, e.g. "Create a backup script".')] = None,
    prompt_option: Annotated[str | None, typer.Option("--prompt", help="The same, as an option.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "--checkpoint", help="Run folder or checkpoint. Default: the newest run.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 from all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this share of probability.")] = 0.9,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    command: Annotated[bool, typer.Option("--command", help="Ask for a one-line command instead of a script.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Continue the text as it is, not as a comment.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Text only: no colours, no facts. Default in a pipe.")] = False,
) -> None:
    r"""Generate a script from a request in English.

    Example: mlx-codegen generate "Create a backup script" --temperature 0.5 --seed 1
    """
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load
    from mlx_codegen.generation.prompts import unescape_newlines

    if (prompt is None) == (prompt_option is None):
        raise UserError('give one prompt, for example: mlx-codegen generate "Create a backup script"')
    text = unescape_newlines(prompt if prompt is not None else str(prompt_option))
    # Shown in the facts, so that a lucky answer can be had again.
    seed = secrets.randbits(32) if seed is None else seed
    settings = check_sampling(
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    )
    engine = load(find_checkpoint(model or newest_run()))
    pieces = engine.stream(text, command=command, plain=plain or None, **settings.model_dump())
    if raw or not sys.stdout.isatty():
        write_plain(pieces)
    else:
        show_live(pieces, f"{engine.origin} · seed {seed}")


def newest_run() -> Path:
    """The run whose checkpoints changed last. Raises UserError where nothing is trained yet."""
    checkpoints = sorted(Path("runs").glob("*/*/best.safetensors"), key=lambda file: file.stat().st_mtime)
    if not checkpoints:
        raise UserError("no trained model in runs/; train one first: mlx-codegen demo (or give --model FOLDER)")
    return checkpoints[-1].parent.parent


def write_plain(pieces: Iterator[str]) -> None:
    """The text and nothing else, as it comes."""
    last = ""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        last = piece or last
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()


def show_live(pieces: Iterator[str], origin: str) -> None:
    """Highlighted line by line as it comes, then one quiet line of facts."""
    from rich.console import Console
    from rich.syntax import Syntax

    console = Console()
    syntax = Syntax("", "bash", theme="ansi_dark", background_color="default")
    start = time.perf_counter()
    count, line = -1, ""  # the first piece is the prompt's own text

    def print_line(text: str) -> None:
        console.print(syntax.highlight(visible_controls(text)), end="")

    for piece in pieces:
        count += 1
        line += piece
        *finished, line = line.split("\n")
        for text in finished:
            print_line(text)
    if line:
        print_line(line)
    seconds = time.perf_counter() - start
    console.print(f"{count} tokens · {seconds:.1f} s · {count / seconds:,.0f} tokens/s · {origin}", style="dim", highlight=False)


def visible_controls(text: str) -> str:
    """Terminal control characters become visible (`^[`, `\\x9b`), so that generated text cannot steer the terminal."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    number = ord(character)
    if (number < 32 and character != "\t") or number == 127:
        return f"^{chr(number ^ 64)}"
    return f"\\x{number:02x}" if 128 <= number < 160 else character
