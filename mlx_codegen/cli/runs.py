"""What the commands that work on a run share: its folder, its configuration from options, stopping it politely."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_codegen.config import RunConfig, build_run_config, expanded, find_config, read_yaml
from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.training.run_folder import RunFolder

ConfigArgument = Annotated[str, typer.Argument(help="A file, or the name of one in configs/ (nano, tiny, small, ...).")]
NameOption = Annotated[str | None, typer.Option("--name", help="Folder name under runs/. Default: the config's name.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. phases.code.learning_rate=5e-5. Repeatable."),
]
LanguageDataOption = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE", help="English text: a file, a folder, hub:OWNER/NAME, or bundled. Repeatable."),
]
CodeDataOption = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE", help="Scripts or pairs: a file, a folder, hub:OWNER/NAME, or bundled. Repeatable."),
]


def run_folder(name: str | None, config: str) -> "RunFolder":
    """`runs/<name>`, named after the config where no name is given."""
    from mlx_codegen.training.run_folder import RunFolder

    chosen = name or Path(config).stem
    if not chosen or "/" in chosen or chosen.startswith("."):
        raise UserError(f"--name {chosen}: a run's name is one folder name, without / and without a leading dot")
    return RunFolder(Path("runs") / chosen)


def config_from_options(
    config: str, overrides: list[str] | None, language_data: list[str] | None, code_data: list[str] | None
) -> RunConfig:
    """A config file with sources replaced and overrides applied."""
    file = find_config(config)
    values = read_yaml(file)
    for phase, specs, bundled in (("language", language_data, "english"), ("code", code_data, "bash")):
        if specs:
            _replace_sources(values, phase, [source_from_text(spec, bundled) for spec in specs], file)
    return build_run_config(values, overrides or (), origin=str(file))


def source_from_text(text: str, bundled: str) -> dict[str, Any]:
    """A source's settings from `bundled`, `hub:OWNER/NAME` or a path, as typed on a command line."""
    if text == "bundled":
        return {"name": bundled, "bundled": bundled}
    if text.startswith("hub:"):
        return {"name": _source_name(text.rpartition("/")[2].removeprefix("hub:")), "hub": text.removeprefix("hub:")}
    if not text or not expanded(text).exists():
        raise UserError(f"no file or folder {text or 'without a name'}; give one that exists, hub:OWNER/NAME, or bundled")
    return {"name": _source_name(Path(text).stem or "data"), "path": text}


def _source_name(text: str) -> str:
    name = "".join(character if character.isalnum() or character in "_.-" else "-" for character in text)
    return name.encode("ascii", "replace").decode().replace("?", "-").lstrip("_.-") or "data"


def _replace_sources(values: dict[str, Any], phase: str, sources: list[dict[str, Any]], file: Path) -> None:
    settings = (values.get("phases") or {}).get(phase)
    if not isinstance(settings, dict):
        raise UserError(f"{file} has no {phase} phase to give data to")
    settings["sources"] = sources


@contextmanager
def polite_stop(tell: Callable[[str], None], in_step: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and a closed terminal ask the work to stop after its step; a second signal stops at once.

    Outside of training steps (`in_step()` false: preparing data, which starts over anyway) the first one does.
    Signals that whoever started us has switched off (`nohup`, a job in the background) stay off.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked or not in_step():
            raise KeyboardInterrupt
        asked = True
        tell("finishing this step, then saving; once more stops at once")

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
