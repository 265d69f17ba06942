"""`mlx-codegen generate`: one request, one script."""

import secrets
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.generation.checked import Chosen
    from mlx_codegen.generation.engine import Engine

NOT_VALID = 1
"""Exit status where the answer is no valid bash."""

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--checkpoint",
        help="Run folder, checkpoint or exported folder. Default: the best release in weights/, else the newest run.",
    ),
]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")]
TopKOption = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 from all.")]
TopPOption = Annotated[float, typer.Option(help="Draw from the likeliest tokens with this share of probability.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.")]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same text.")]


def generate(
    prompt: Annotated[str | None, typer.Argument(help='What you want, e.g. "Create a backup script".')] = None,
    prompt_option: Annotated[str | None, typer.Option("--prompt", help="The same, as an option.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Continue the text on the standard input, a begun script.")] = False,
    model: ModelOption = None,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 50,
    top_p: TopPOption = 0.9,
    max_tokens: MaxTokensOption = 512,
    seed: SeedOption = None,
    draft: Annotated[
        Path | None, typer.Option(help="A smaller model of the same tokenizer that guesses ahead: the same distribution, sooner.")
    ] = None,
    command: Annotated[bool, typer.Option("--command", help="Ask for a one-line command instead of a script.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Continue the text as it is, not as a comment.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Text only: no colours, no facts. Default in a pipe.")] = False,
    check: Annotated[
        bool | None, typer.Option("--check/--no-check", help="Say what bash and shellcheck think of it. Default on a terminal.")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            min=1,
            max=256,
            help="Write so many at once, and answer with the best that parses; 1 shows a text as it comes. "
            "Default: 8, or 1 where nothing is to be chosen (--plain, --stdin, --draft, --temperature 0).",
        ),
    ] = None,
    valid: Annotated[bool, typer.Option("--valid", help="Answer with valid bash or not at all.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the script to a new file.")] = None,
    executable: Annotated[bool, typer.Option("--executable", help="With --save: the file may be run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --save: replace the file.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Ask, then run it in the sandbox: no network, none of your files.")] = False,
) -> None:
    r"""Generate a script from a request in English.

    Example: mlx-codegen generate "Create a backup script" --temperature 0.5 --seed 1

    Exit status: 0, or 1 if the answer is not valid bash (with --check, --best-of, --valid), or 2 for a mistake in the
    command line, or with --run that of the script.
    """
    from mlx_codegen.cli.answer import refuse_to_overwrite, run_in_sandbox, save_script, show_checks
    from mlx_codegen.generation.engine import check_sampling, find_checkpoint, load
    from mlx_codegen.hub.releases import default_model

    text = _request(prompt, prompt_option, stdin)
    if save is not None:
        refuse_to_overwrite(save, force)
    elif executable or force:
        raise UserError("--executable and --force belong to --save FILE")
    # Shown in the facts, so that a lucky answer can be had again.
    seed = secrets.randbits(32) if seed is None else seed
    settings = check_sampling(
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    )
    engine = load(find_checkpoint(model or default_model()))
    if draft is not None:
        engine.use_draft(load(find_checkpoint(draft)))
    keywords = {**settings.model_dump(), "command": command, "plain": plain or stdin or None}
    on_terminal = sys.stdout.isatty() and not raw
    count = best_of if best_of is not None else usual_count(engine, keywords)
    must_parse = valid or (best_of or 1) > 1
    if valid or count > 1:
        script, parses = write_best(engine, text, count, valid=valid, must_parse=must_parse, on_terminal=on_terminal, **keywords)
    else:
        script, parses = _write(engine, text, on_terminal, keywords), True
    wants_check = check if check is not None else on_terminal
    if wants_check and engine.phase != "language" and not plain:
        parses = show_checks(script) and parses
    if save is not None:
        save_script(script, save, executable=executable, force=force)
    if run:
        raise typer.Exit(run_in_sandbox(script))
    if not parses and (check or must_parse):
        raise typer.Exit(NOT_VALID)


def _request(prompt: str | None, prompt_option: str | None, stdin: bool) -> str:
    """The one request, from wherever it comes."""
    from mlx_codegen.generation.prompts import unescape_newlines

    if [prompt is not None, prompt_option is not None, stdin].count(True) != 1:
        raise UserError('give one prompt, for example: mlx-codegen generate "Create a backup script"')
    if not stdin:
        return unescape_newlines(prompt if prompt is not None else str(prompt_option))
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("the standard input is not UTF-8 text") from None


def _write(engine: "Engine", text: str, on_terminal: bool, keywords: dict[str, Any]) -> str:
    from mlx_codegen.cli.answer import show_live, write_plain

    pieces = engine.stream(text, **keywords)
    return show_live(pieces, f"{engine.origin} · seed {keywords['seed']}") if on_terminal else write_plain(pieces)


def usual_count(engine: "Engine", keywords: dict[str, Any]) -> int:
    """How many texts are written where nobody says: several of a script, to choose from, if they can differ at all."""
    from mlx_codegen.generation import checked

    one = engine.phase == "language" or engine.draft is not None or keywords["plain"] or keywords["temperature"] == 0
    return 1 if one else checked.BATCH


def write_best(
    engine: "Engine", text: str, count: int, *, valid: bool = False, must_parse: bool = False, on_terminal: bool, **keywords: Any
) -> tuple[str, bool]:
    """Writes several and shows the best; returns it, and whether it parses.

    Where none parses, it is the likeliest, or with `must_parse` nothing: raises Exit.
    """
    from mlx_codegen.cli.answer import show_text, write_plain
    from mlx_codegen.generation import checked

    with _telling(f"writing {count}, to keep the best") if on_terminal else nullcontext():
        # With --valid, whole batches until one is good; with --best-of as well, batches of that size
        chosen = (
            checked.valid(engine, text, batch=max(count, checked.BATCH), **keywords)
            if valid
            else checked.best_of(engine, text, count, **keywords)
        )
    if chosen.best is None:
        print(f"none of {chosen.written} texts is valid bash; ask in other words, or at a lower --temperature", file=sys.stderr)
        if must_parse:
            raise typer.Exit(NOT_VALID)
    script = chosen.best.completion.text if chosen.best is not None else chosen.likeliest.text
    if on_terminal:
        show_text(script)
        _show_facts(chosen, engine.origin, keywords["seed"])
    else:
        write_plain([script])
    return script, chosen.best is not None


def _telling(what: str) -> AbstractContextManager[Any]:
    from rich.console import Console

    return Console(stderr=True).status(what)


def _show_facts(chosen: "Chosen", origin: str, seed: int) -> None:
    from rich.console import Console

    facts = f"best of {chosen.written} · {chosen.failed} did not parse · {chosen.tokens} tokens · {origin} · seed {seed}"
    Console().print(facts, style="dim", highlight=False)
