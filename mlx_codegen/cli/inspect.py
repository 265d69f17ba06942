"""`mlx-codegen inspect tokens|next|attention|trace`: see inside a model, in the terminal and as a page."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_codegen.cli.generate import (
    MaxTokensOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from mlx_codegen.errors import UserError

if TYPE_CHECKING:
    from mlx_codegen.generation.engine import Engine

app = typer.Typer(help="See inside: tokens, next-token table, attention, a generation step by step.", rich_markup_mode=None)

PromptArgument = Annotated[str, typer.Argument(help='What you want, e.g. "Create a backup script".')]
CommandOption = Annotated[bool, typer.Option("--command", help="Ask for a one-line command instead of a script.")]
PlainOption = Annotated[bool, typer.Option("--plain", help="Read the text as it is, not as a comment.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead, one file that holds all.")]
ForceOption = Annotated[bool, typer.Option("--force", help="With --html: replace the file.")]


@app.command()
def tokens(
    text: Annotated[str, typer.Argument(help="Any text; \\n is a newline.")],
    model: ModelOption = None,
    html: HtmlOption = None,
    force: ForceOption = False,
) -> None:
    """Show how a text is cut into tokens.

    Example: mlx-codegen inspect tokens "for f in *.log; do"
    """
    from mlx_codegen.generation.engine import find_checkpoint
    from mlx_codegen.generation.prompts import unescape_newlines
    from mlx_codegen.hub.folder import open_checkpoint
    from mlx_codegen.hub.releases import default_model
    from mlx_codegen.inspect.pieces import pieces

    _check_html(html, force)
    if not text:
        raise UserError('the text is empty; give one, for example: mlx-codegen inspect tokens "ls -l"')
    file = find_checkpoint(model or default_model())
    tokenizer = open_checkpoint(file).tokenizer
    cut = pieces(tokenizer, tokenizer.encode(unescape_newlines(text)))
    if html is not None:
        from mlx_codegen.inspect.page import tokens_page

        _save_page(tokens_page(cut, str(file)), html, force)
        return
    from mlx_codegen.cli.inspect_display import show_tokens

    show_tokens(cut)


@app.command(name="next")
def next_(
    prompt: PromptArgument,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Candidates to show.")] = 10,
    model: ModelOption = None,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 50,
    top_p: TopPOption = 0.9,
    command: CommandOption = False,
    plain: PlainOption = False,
    html: HtmlOption = None,
    force: ForceOption = False,
) -> None:
    """Show the likeliest next tokens, before and after each filter.

    Example: mlx-codegen inspect next "Create a backup script" --temperature 0.5
    """
    from mlx_codegen.generation.engine import check_sampling
    from mlx_codegen.inspect.candidates import next_tokens
    from mlx_codegen.inspect.pieces import pieces

    _check_html(html, force)
    settings = check_sampling({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    engine, ids = _read(prompt, model, command, plain)
    table = next_tokens(engine, ids, settings, count)
    if html is not None:
        from mlx_codegen.inspect.page import next_page

        _save_page(next_page(pieces(engine.tokenizer, ids), table, engine.origin), html, force)
        return
    from mlx_codegen.cli.inspect_display import show_next

    show_next(pieces(engine.tokenizer, ids), table, engine.origin)


@app.command()
def attention(
    prompt: PromptArgument,
    layer: Annotated[int | None, typer.Option(help="Layer, from 1. Default: all.")] = None,
    head: Annotated[int | None, typer.Option(help="Head, from 1. Default: all.")] = None,
    token: Annotated[
        str | None, typer.Option(metavar="N|TEXT", help="With --layer and --head: what this token looks at, in order.")
    ] = None,
    model: ModelOption = None,
    command: CommandOption = False,
    plain: PlainOption = False,
    html: HtmlOption = None,
    force: ForceOption = False,
) -> None:
    """Show which tokens each token looks at: one head large, or all heads small.

    Example: mlx-codegen inspect attention "Create a backup script" --layer 2 --head 1 --token backup
    """
    from mlx_codegen.inspect.attention import find_token, head_maps
    from mlx_codegen.inspect.pieces import pieces

    _check_html(html, force)
    if token is not None and (layer is None or head is None or html is not None):
        raise UserError("--token needs --layer and --head, and no --html (in a page, every token can be chosen)")
    engine, ids = _read(prompt, model, command, plain)
    maps = head_maps(engine.model, ids, layer, head)
    cut = pieces(engine.tokenizer, ids)
    if html is not None:
        from mlx_codegen.inspect.page import attention_page

        _save_page(attention_page(cut, maps, engine.origin), html, force)
        return
    from mlx_codegen.cli.inspect_display import show_attended, show_grid, show_map

    if token is not None:
        show_attended(cut, maps[0], find_token(engine.tokenizer, ids, token))
    elif len(maps) == 1:
        show_map(cut, maps[0])
    else:
        show_grid(cut, maps)


@app.command()
def trace(
    prompt: PromptArgument,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Candidates to show at each step.")] = 5,
    model: ModelOption = None,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 50,
    top_p: TopPOption = 0.9,
    max_tokens: MaxTokensOption = 512,
    seed: SeedOption = None,
    command: CommandOption = False,
    plain: PlainOption = False,
    html: HtmlOption = None,
    force: ForceOption = False,
) -> None:
    """Show a generation step by step: the candidates and the token taken.

    Example: mlx-codegen inspect trace "Create a backup script" --seed 1 --max-tokens 40
    """
    from mlx_codegen.generation.engine import check_sampling
    from mlx_codegen.inspect.pieces import pieces
    from mlx_codegen.inspect.trace import trace as trace_steps

    _check_html(html, force)
    seed = secrets.randbits(32) if seed is None else seed
    settings = check_sampling(
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    )
    engine, ids = _read(prompt, model, command, plain)
    steps = trace_steps(engine, ids, seed, settings, count)
    start = pieces(engine.tokenizer, ids)
    if html is not None:
        from mlx_codegen.inspect.page import trace_page

        facts = f"temperature {temperature:g} · top-k {top_k} · top-p {top_p:g}"
        _save_page(trace_page(start, list(steps), seed, facts, engine.origin), html, force)
        return
    from mlx_codegen.cli.inspect_display import show_trace

    show_trace(start, steps, f"seed {seed} · {engine.origin}")


def _read(prompt: str, model: Path | None, command: bool, plain: bool) -> tuple["Engine", list[int]]:
    """The model, and the ids that `generate` would give it for this prompt."""
    from mlx_codegen.generation.engine import find_checkpoint, load
    from mlx_codegen.generation.prompts import unescape_newlines
    from mlx_codegen.hub.releases import default_model

    engine = load(find_checkpoint(model or default_model()))
    _, ids = engine.encode_prompt(unescape_newlines(prompt), command=command, plain=plain or None)
    return engine, ids


def _check_html(path: Path | None, force: bool) -> None:
    """Says what is wrong with --html before any work is done."""
    from mlx_codegen.cli.answer import refuse_to_overwrite

    if path is not None:
        refuse_to_overwrite(path, force, "--html")
    elif force:
        raise UserError("--force belongs to --html FILE")


def _save_page(html: str, path: Path, force: bool) -> None:
    from mlx_codegen.cli.answer import save_text

    save_text(html + "\n", path, force=force, option="--html")
