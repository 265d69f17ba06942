"""What the scripts here share: options of training, handing over to the `mlx-codegen` command line, keeping downloads.

Three scripts are a command of `mlx-codegen` under the name that people look for; all of them report errors as it does.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mlx_codegen.cli import main
from mlx_codegen.config import SourceConfig
from mlx_codegen.data.sources import read_documents
from mlx_codegen.errors import UserError

DOWNLOADS = Path("data/downloads")
DOCUMENTS_BETWEEN_LINES = 5_000


def positive_number(text: str) -> int:
    """For argparse: a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


class Parser(argparse.ArgumentParser):
    """argparse with the manners of `mlx-codegen`: a mistake is one line, not a page of usage."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def training_parser(description: str | None) -> Parser:
    """The options that both training scripts have."""
    parser = Parser(description)
    parser.add_argument("--model-size", default="tiny", help="nano, tiny, small, ... or a config file (default: tiny)")
    parser.add_argument("--batch-size", type=int, help="sequences a batch")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--num-epochs", type=float, help="passes over the data")
    length.add_argument("--num-steps", type=int, help="optimizer updates, instead of epochs")
    parser.add_argument("--resume", action="store_true", help="continue this phase where it stopped")
    parser.add_argument("--name", help="folder name under runs/; default: the model size")
    return parser


def training_arguments(
    options: argparse.Namespace,
    phase: str,
    *,
    language_data: Path | None = None,
    code_data: Path | None = None,
    init_from: Path | None = None,
) -> list[str]:
    """`mlx-codegen train ...` for the options of `training_parser`."""
    arguments = ["train", options.model_size, "--phase", phase]
    for option, value in (("--name", options.name), ("--init-from", init_from)):
        arguments += [option, str(value)] if value is not None else []
    for option, value in (("--language-data", language_data), ("--code-data", code_data)):
        arguments += [option, str(value)] if value is not None else []
    arguments += ["--resume"] if options.resume else []
    # Giving one length takes the other away, which the config may have set.
    settings: dict[str, Any] = {"batch_size": options.batch_size, "learning_rate": options.learning_rate}
    if options.num_steps is not None:
        settings |= {"steps": options.num_steps, "epochs": "null"}
    if options.num_epochs is not None:
        settings |= {"epochs": options.num_epochs, "steps": "null"}
    for key, value in settings.items():
        arguments += ["--set", f"phases.{phase}.{key}={value}"] if value is not None else []
    return arguments


def hand_over(arguments: list[str]) -> int:
    """Run `mlx-codegen` with these arguments; its exit status."""
    return main.run(arguments)


def explained(work: Callable[[], None]) -> int:
    """Do some work that is no command of `mlx-codegen`; failures become the same line and the same exit status."""
    main.prepare_streams()
    try:
        work()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return main.INTERRUPTED
    return 0


def save_texts(source: SourceConfig, file: Path) -> int:
    """Read a source and write its documents as `{"text": ...}` lines, whole or not at all; how many there were.

    Raises UserError where the source cannot be read, with nothing written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            for count, text in enumerate(read_documents(source, skipped=lambda line: print(f"left out: {line}")), 1):
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if count % DOCUMENTS_BETWEEN_LINES == 0:
                    print(f"{count:,} documents, {stream.tell() / 1e6:,.1f} MB", flush=True)
            stream.flush()
            os.fsync(stream.fileno())
        if count == 0:
            raise UserError(f"{source.hub or source.path} holds no documents; nothing was written")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{file}: {count:,} documents, {file.stat().st_size / 1e6:,.1f} MB")
    return count
