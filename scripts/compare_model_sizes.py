"""Runs of several sizes beside each other: parameters, tokens, loss, bits per byte, speed, and figures of their reports.

Example: python scripts/compare_model_sizes.py runs/nano runs/tiny small
"""

import sys

from entry import Parser, explained
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mlx_codegen.evaluation.report import figure_texts
from mlx_codegen.evaluation.run_facts import RunFacts, run_facts

PIPE_COLUMNS = 160


def compare(given: list[str]) -> None:
    """One column for each run, one row for each figure."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or their names under runs/, or names of sizes")
    facts = [run_facts(name) for name in parser.parse_args(given).runs]
    table = Table("", box=SIMPLE, pad_edge=False)
    for run in facts:
        table.add_column(run.name, justify="right", overflow="fold")
    for name, cells in rows(facts).items():
        table.add_row(name, *cells)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table)
    if any(run.tokens is None for run in facts):
        console.print("–: not trained or not measured yet", style="dim")


def rows(facts: list[RunFacts]) -> dict[str, list[str]]:
    """Texts of each row."""

    def texts(values: list[float | None], form: str) -> list[str]:
        return ["–" if value is None else form.format(value) for value in values]

    table = {
        "parameters": texts([run.parameters for run in facts], "{:,}"),
        "tokens trained on": texts([run.tokens for run in facts], "{:,}"),
        "validation loss, nats/token": texts([run.loss for run in facts], "{:.3f}"),
        "validation bits/byte": texts([run.bits_per_byte for run in facts], "{:.3f}"),
        "tokens/s": texts([run.tokens_per_second for run in facts], "{:,.0f}"),
    }
    for name in dict.fromkeys(name for run in facts for name in run.figures):
        table[name] = [figure_texts(run.figures[name])[0] if name in run.figures else "–" for run in facts]
    return table


if __name__ == "__main__":
    sys.exit(explained(lambda: compare(sys.argv[1:])))
