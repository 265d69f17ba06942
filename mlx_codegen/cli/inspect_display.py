"""What `inspect` finds, drawn in a terminal: signs carry the meaning, colours only help."""

from collections.abc import Iterable, Iterator

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_codegen.inspect.attention import HeadMap, pooled
from mlx_codegen.inspect.candidates import NextTokens, percent
from mlx_codegen.inspect.pieces import Piece
from mlx_codegen.inspect.trace import TraceStep

HUES = ("black on color(117)", "black on color(150)", "black on color(222)", "black on color(217)", "black on color(183)")
SHADES = ((0.65, "█", "bright_cyan"), (0.35, "▓", "bright_cyan"), (0.15, "▒", "cyan"), (0.05, "░", "cyan"), (0.0, "·", "dim"))
SMALL_MAP = 16
"""Characters a side of a map in the grid."""
WIDEST_LABEL = 14
LEAST_BAR, WIDEST_BAR = 8, 30


def show_tokens(cut: list[Piece]) -> None:
    """The text in colours, or with a mark between pieces where there are none; then the table."""
    console = _console()
    colors = console.color_system is not None and not console.no_color
    _print_pieces(console, cut, [_hue(number, piece) for number, piece in enumerate(cut)], "" if colors else "│")
    console.print()
    table = _table("#", "token", "id", "bytes", left=("token",))
    for number, piece in enumerate(cut):
        table.add_row(str(number + 1), Text(piece.text, _hue(number, piece) if colors else ""), str(piece.id), str(piece.bytes))
    console.print(table)
    size = sum(piece.bytes for piece in cut)
    lone = sum(piece.kind == "byte" for piece in cut)
    facts = f"{len(cut)} tokens · {size} bytes · {size / len(cut):.2f} bytes a token" + (f" · {lone} lone bytes" if lone else "")
    console.print(f"\n{facts}", style="dim")


def _print_pieces(console: Console, cut: list[Piece], styles: list[str], mark: str) -> None:
    """Pieces as running text: a new line after a newline, and where the next piece does not fit whole."""
    line = Text()
    for number, (piece, style) in enumerate(zip(cut, styles, strict=True), 1):
        after = "" if piece.ends_line or number == len(cut) else mark
        if line and line.cell_len + cell_len(piece.text + after) > console.width:
            console.print(line)
            line = Text()
        line.append(piece.text, style).append(after)
        if piece.ends_line:
            console.print(line, overflow="fold")
            line = Text()
    if line:
        console.print(line, overflow="fold")


def _hue(number: int, piece: Piece) -> str:
    return HUES[number % len(HUES)] + (" italic" if piece.kind != "text" else "")


def show_next(prompt: list[Piece], found: NextTokens, origin: str) -> None:
    """The table of candidates, a column for each stage."""
    console = _console()
    wide = console.width >= 70
    headings = [f"{stage.name}\n{stage.setting}" for stage in found.stages]
    table = _table(*(["#", "token", "id"] if wide else ["token"]), *headings, *([""] if wide else []), left=("token", ""))
    bar = min(WIDEST_BAR, max(LEAST_BAR, console.width - 62))
    for number, candidate in enumerate(found.candidates, 1):
        odds = candidate.probabilities
        place = [str(number), candidate.piece.text, str(candidate.piece.id)] if wide else [candidate.piece.text]
        table.add_row(*map(Text, [*place, *map(percent, odds), *([_bar(odds[-1], bar)] if wide else [])]))
    blank = [""] if wide else []
    table.add_row(*blank, "all others", *blank, *map(percent, found.others), style="dim")
    table.add_row(*blank, "remaining", *blank, *(f"{stage.remaining:,}" for stage in found.stages), style="dim")
    console.print("what comes after", style="dim")
    _print_pieces(console, prompt, [""] * len(prompt), "")
    console.print(table)
    console.print(f"drawn from the last column · {origin}", style="dim", soft_wrap=True)


def show_map(cut: list[Piece], shown: HeadMap) -> None:
    """One head: rows look at columns; what does not fit side by side goes below."""
    console = _console()
    weights: list[list[float]] = shown.weights.tolist()
    digits = len(str(len(cut)))
    label = min(WIDEST_LABEL, max(len(piece.text) for piece in cut), max(4, console.width // 4))
    cell = max(2, digits + 1)
    across = max(1, (console.width - label - digits - 2) // cell)
    console.print(f"layer {shown.layer}, head {shown.head}: each row looks at itself and what came before", style="bold")
    for start in range(0, len(cut), across):
        columns = range(start, min(start + across, len(cut)))
        console.print(" " * (digits + label + 2) + "".join(f"{column + 1:>{cell}}" for column in columns), style="dim")
        for row in range(start, len(cut)):
            line = Text(f"{row + 1:>{digits}} ", "dim").append(
                set_cell_size(_cropped(cut[row].text, label), label) + " ", "not dim"
            )
            for column in columns[: row - start + 1]:
                line.append(" " * (cell - 2)).append_text(_shade(weights[row][column], 2))
            console.print(line, no_wrap=True, crop=False)
    _show_legend(console)


def show_attended(cut: list[Piece], shown: HeadMap, place: int) -> None:
    """What one token looks at, strongest first."""
    console = _console()
    row: list[float] = shown.weights[place].tolist()[: place + 1]
    title = Text(f"layer {shown.layer}, head {shown.head}: token {place + 1} ", "bold").append(cut[place].text, "bold reverse")
    console.print(title.append(" looks at"), overflow="fold")
    table = _table("weight", "", "#", "token", left=("", "token"))
    bar = min(WIDEST_BAR, max(LEAST_BAR, console.width - 40))
    for seen in sorted(range(place + 1), key=lambda index: -row[index]):
        table.add_row(percent(row[seen]), _bar(row[seen], bar), str(seen + 1), Text(cut[seen].text))
    console.print(table)


def show_grid(cut: list[Piece], maps: list[HeadMap]) -> None:
    """All heads as small maps, as many side by side as fit."""
    console = _console()
    drawn = [pooled(shown.weights, SMALL_MAP) for shown in maps]
    width = max(len(drawn[0]), len("layer 12 head 12")) + 2
    heads = sum(shown.layer == maps[0].layer for shown in maps)
    across = max(1, min(heads if heads > 1 else len(maps), (console.width + 2) // width))
    for layer in _rows(maps):
        for start in range(layer.start, layer.stop, across):
            line = range(start, min(start + across, layer.stop))
            titles = (f"layer {maps[index].layer} head {maps[index].head}" for index in line)
            console.print("".join(f"{title:<{width}}" for title in titles).rstrip(), style="bold")
            for row in range(len(drawn[0])):
                text = Text()
                for index in line:
                    for column in range(row + 1):
                        text.append_text(_shade(drawn[index][row][column], 1))
                    text.append(" " * (width - row - 1))
                text.rstrip()
                console.print(text, no_wrap=True, crop=False)
            console.print()
    _show_legend(console)
    pooling = f"; {len(cut)} tokens made {SMALL_MAP} by taking the largest weight" if len(cut) > SMALL_MAP else ""
    console.print(f"rows look, columns are looked at{pooling} · one head: --layer 1 --head 1", style="dim")


def _rows(maps: list[HeadMap]) -> Iterator[range]:
    """Each layer's share of the list, if it has several heads there; else all in one."""
    heads = sum(shown.layer == maps[0].layer for shown in maps)
    step = heads if heads > 1 else len(maps)
    return (range(start, start + step) for start in range(0, len(maps), step))


def show_trace(prompt: list[Piece], steps: Iterable[TraceStep], facts: str) -> None:
    """One line a step, as they come; then the text."""
    console = _console()
    taken, odd = [], 0
    label = 10 if console.width < 60 else WIDEST_LABEL
    console.print("≠ where another token was likelier; candidates in %, likeliest first", style="dim")
    for number, step in enumerate(steps, 1):
        taken.append(step.taken)
        odd += step.rank > 1
        line = (
            Text()
            .append(f"{number:>4} ", "dim")
            .append(set_cell_size(_cropped(step.taken.text, label), label), "bold yellow" if step.rank > 1 else "bold")
        )
        line.append(f" {percent(step.probability):>7} ").append("≠" if step.rank > 1 else " ", "yellow")
        _append_candidates(line, step, console.width, longest=8 if console.width < 60 else 24)
        console.print(line, no_wrap=True, overflow="crop")
    console.print()
    _print_pieces(console, prompt + taken, ["dim"] * len(prompt) + [""] * len(taken), "")
    ended = "ended by itself" if taken[-1].kind == "control" else "stopped at --max-tokens"
    console.print(f"\n{len(taken)} tokens, {ended} · {odd} not the likeliest · {facts}", style="dim", soft_wrap=True)


def _append_candidates(line: Text, step: TraceStep, width: int, longest: int) -> None:
    """As many as fit into the line, the one taken in brackets."""
    for piece, probability in step.candidates:
        mine = piece.id == step.taken.id
        text = _cropped(piece.text, longest)
        part = (
            Text()
            .append(f"  [{text}] " if mine else f"  {text} ", "bold" if mine else "")
            .append(f"{100 * probability:.0f}", "dim")
        )
        if line.cell_len + part.cell_len > width:
            return
        line.append_text(part)
    if step.remaining > len(step.candidates):
        more = Text(f"  +{step.remaining - len(step.candidates)}", "dim")
        if line.cell_len + more.cell_len <= width:
            line.append_text(more)


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def _table(*headings: str, left: tuple[str, ...]) -> Table:
    """Right-aligned columns without lines, which read the same in a pipe."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in headings:
        is_left = heading in left
        table.add_column(heading, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
    return table


def _shade(weight: float, width: int) -> Text:
    sign, style = next((sign, style) for least, sign, style in SHADES if weight >= least)
    return Text(sign * width if sign != "·" else sign.rjust(width), style)


def _show_legend(console: Console) -> None:
    console.print("█ from 65 %  ▓ 35 %  ▒ 15 %  ░ 5 %  · less", style="dim")


def _bar(share: float, width: int) -> str:
    """A bar in eighths of a character."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + ("" if eighths % 8 == 0 else "▏▎▍▌▋▊▉"[eighths % 8 - 1])


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
