"""`mlx-codegen chat`: one request after another, with history and editing; `/help` lists what can be changed."""

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_codegen.cli.generate import (
    MaxTokensOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from mlx_codegen.config import expanded
from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.generation.engine import Engine


@dataclass
class Session:
    """What the commands change, and the last text."""

    engine: "Engine"
    sampling: dict[str, Any]
    seed: int | None
    """The seed of the next text; None draws one."""
    prompt: str = ""
    text: str = ""
    command: bool = False


def chat(
    model: ModelOption = None,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 50,
    top_p: TopPOption = 0.9,
    max_tokens: MaxTokensOption = 512,
    seed: SeedOption = None,
) -> None:
    """Ask for one script after another; /help lists the commands, Ctrl-C stops the text, Ctrl-D ends the session."""
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load
    from mlx_codegen.hub.releases import default_model

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens}
    check_sampling({**sampling, "seed": seed})
    session = Session(load(find_checkpoint(model or default_model())), sampling, seed)
    quiet(f"{session.engine.origin} · /help for help")
    for line in lines():
        if line.strip() in ("/quit", "/exit"):
            return
        try:
            answer(session, line.strip())
        except UserError as error:
            # A mistake ends no session
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        except OSError as error:
            if error.filename is None:
                raise  # the output, not a file that was named
            print(f"error: {error.filename}: {error.strerror}; name another file", file=sys.stderr)
        except KeyboardInterrupt:
            quiet("stopped; /more goes on")


def lines() -> Iterator[str]:
    """Lines that a person types, with history and editing on a terminal; else those of the standard input."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    history: History = InMemoryHistory()
    with suppress(OSError):  # a home folder that cannot be written to costs the history, not the session
        file = history_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        history = FileHistory(str(file))
    prompts: PromptSession[str] = PromptSession(history=history)
    words = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
    while True:
        try:
            yield prompts.prompt("› ", completer=words, complete_while_typing=False)
        except KeyboardInterrupt:
            continue  # throws the line away, as a shell does
        except EOFError:
            return


def history_file() -> Path:
    """Where shells and their like keep such things."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mlx-codegen" / "history"


def answer(session: Session, line: str) -> None:
    """Obeys a command, or writes a text for a request. Raises UserError for what can be neither."""
    if not line:
        return
    if not line.startswith("/") or line.startswith("//"):
        session.prompt, session.command = line.removeprefix("/") if line.startswith("//") else line, False
        write(session, session.prompt)
        return
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise UserError(f"no command /{name}; /help lists them (a request that begins with / is typed with //)")
    COMMANDS[name][0](session, rest.strip())


def write(session: Session, text: str, *, plain: bool | None = None) -> None:
    """Writes and shows a text; what was written before Ctrl-C is kept."""
    from mlx_codegen.cli.answer import show_checks, show_live, write_plain

    seed = secrets.randbits(32) if session.seed is None else session.seed
    session.seed = None
    session.text = ""
    pieces = session.engine.stream(text, seed=seed, command=session.command, plain=plain, **session.sampling)

    def kept() -> Iterator[str]:
        for piece in pieces:
            session.text += piece
            yield piece

    if sys.stdout.isatty():
        show_live(kept(), f"seed {seed}")
        if session.engine.phase != "language":
            show_checks(session.text)
    else:
        write_plain(kept())


def quiet(text: str) -> None:
    """A dim line that is no part of the texts."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)


def last_text(session: Session) -> str:
    """The last text, or UserError."""
    if not session.text:
        raise UserError("nothing is written yet; type what you want, for example: Create a backup script")
    return session.text


def change(key: str, kind: Callable[[str], float]) -> Callable[[Session, str], None]:
    """A command that shows or sets one sampling setting."""

    def set_or_show(session: Session, value: str) -> None:
        from mlx_codegen.generation.engine import check_sampling

        if value:
            try:
                changed = {**session.sampling, key: kind(value)}
            except ValueError:
                raise UserError(f"/{key.replace('_', '-')} takes a number, not {value!r}") from None
            check_sampling(changed)
            session.sampling = changed
        quiet(f"{key.replace('_', '-')}: {session.sampling[key]}")

    return set_or_show


def change_seed(session: Session, value: str) -> None:
    """The seed of the next text."""
    from mlx_codegen.generation.engine import check_sampling

    try:
        seed = int(value)
    except ValueError:
        raise UserError("/seed takes a whole number, for example /seed 7") from None
    check_sampling({**session.sampling, "seed": seed})
    session.seed = seed


def change_model(session: Session, value: str) -> None:
    """Another model, or which one it is."""
    from mlx_codegen.generation.engine import find_checkpoint, load

    if value:
        session.engine = load(find_checkpoint(expanded(value)))
    quiet(session.engine.origin)


def again(session: Session, value: str) -> None:
    """Another text for the same request."""
    if not session.prompt:
        raise UserError("nothing was asked yet; type what you want, for example: Create a backup script")
    write(session, session.prompt)


def more(session: Session, value: str) -> None:
    """The last text goes on where it stopped."""
    before = last_text(session)
    write(session, before, plain=True)


def ask_command(session: Session, value: str) -> None:
    """A one-line command instead of a script."""
    if not value:
        raise UserError("say what the command should do, for example: /command count the lines in data.csv")
    session.prompt, session.command = value, True
    write(session, value)


def save(session: Session, value: str) -> None:
    """The last text into a file."""
    from mlx_codegen.cli.answer import save_script

    try:
        words = shlex.split(value)
    except ValueError:  # a quote or a backslash at the end: part of the name
        words = [value]
    options = {word for word in words if word.startswith("--")}
    names = [word for word in words if word not in options]
    if len(names) != 1 or "\0" in value or options - {"--force", "--executable"}:
        raise UserError("name one file: /save backup.sh (and --executable, --force)")
    path = expanded(names[0])
    save_script(last_text(session), path, executable="--executable" in options, force="--force" in options)


def check(session: Session, value: str) -> None:
    """What bash and shellcheck think of the last text."""
    from mlx_codegen.cli.answer import show_checks

    show_checks(last_text(session))


def run(session: Session, value: str) -> None:
    """The last text, in the sandbox, after a question."""
    from mlx_codegen.cli.answer import run_in_sandbox

    run_in_sandbox(last_text(session))


def show_help(session: Session, value: str) -> None:
    """All commands."""
    for name, (_, text) in COMMANDS.items():
        quiet(f"  /{name:<12} {text}")
    quiet("  anything else is a request; Ctrl-C stops a text, Ctrl-D ends the session")


COMMANDS: dict[str, tuple[Callable[[Session, str], None], str]] = {
    "temperature": (change("temperature", float), "how varied: 0 takes the likeliest token; shows it without a number"),
    "top-k": (change("top_k", int), "draw from the k likeliest tokens; 0 from all"),
    "top-p": (change("top_p", float), "draw from the likeliest tokens with this share of probability"),
    "max-tokens": (change("max_tokens", int), "longest answer"),
    "seed": (change_seed, "seed of the next text: same seed, same text"),
    "model": (change_model, "another run folder or checkpoint; shows it without one"),
    "command": (ask_command, "a one-line command for this request, not a script"),
    "again": (again, "another text for the same request"),
    "more": (more, "go on where the last text stopped"),
    "save": (save, "the last text into a file: /save backup.sh [--executable] [--force]"),
    "check": (check, "what bash and shellcheck think of the last text"),
    "run": (run, "run the last text in the sandbox, after a question"),
    "help": (show_help, "this list"),
    "quit": (lambda session, value: None, "end the session (or Ctrl-D)"),
}
