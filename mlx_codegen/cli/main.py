"""`mlx-codegen`: all commands in one program, and the one place where an error becomes a line and an exit status."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlx_codegen.cli import (
    bench,
    chat,
    compare,
    compare_temperatures,
    corpus,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    inspect,
    plot,
    prepare,
    sizes,
    status,
    tokenizer,
    train,
    watch,
)
from mlx_codegen.errors import UserError
from mlx_codegen.version import __version__

app = typer.Typer(
    name="mlx-codegen",
    help="Train a small English-and-bash model on your own machine, and generate scripts with it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mlx-codegen {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a small English-and-bash model on your own machine, and generate scripts with it."""


app.command()(train.train)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(compare_temperatures.compare_temperatures)
app.command()(demo.demo)
app.command()(export.export)
app.command()(prepare.prepare)
app.command()(sizes.sizes)
app.command()(status.status)
app.command()(watch.watch)
app.command()(plot.plot)
app.command()(doctor.doctor)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(corpus.app, name="corpus")
app.add_typer(inspect.app, name="inspect")
app.add_typer(bench.app, name="bench")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
# Newer typer carries click inside, older ones import it: its base exception is found through a public name of both.
ClickException: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run a command. What the person can put right is one line on stderr and exit status 2."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line (without the program's name) and return its exit status."""
    prepare_streams()
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments or ["--help"], prog_name="mlx-codegen", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UserError as error:
        return _fail(str(error))
    except ClickException as error:
        context = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return _fail(f"{error.format_message()}{where}")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our pipe has gone, which is its right; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in NO_SPACE:
            where = error.filename or "a file"
            return _fail(f"no space left on disk while writing {where}; free some and run the same command again")
        if error.filename is None:
            raise  # no file of the person's: a fault of ours
        return _fail(f"{error.filename}: {error.strerror}; check that it is there and that you may read and write it")


def prepare_streams() -> None:
    """A stream that is closed leads nowhere; pipes and files hold UTF-8, as scripts do, and a terminal what it can show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors=errors)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
