"""Does a model still write English after it learned bash? `mlx-codegen evaluate --only bilingual`, and samples side by side.

Example: python scripts/test_bilingual.py runs/tiny --show 5
"""

import json
import sys
from pathlib import Path

from entry import Parser, hand_over, positive_number
from rich.console import Console
from rich.table import Table


def compare(given: list[str]) -> int:
    """Measure, then show the beginnings of stories with what the model made of them before and after the code phase."""
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, help="run folder, checkpoint or exported model")
    parser.add_argument("--samples", type=positive_number, default=4, help="continuations of each opening (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="how varied they are (default: %(default)s)")
    parser.add_argument("--show", type=positive_number, default=8, help="openings to show (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes; default: bilingual/ beside the model")
    options = parser.parse_args(given)
    beside = options.model if options.model.is_dir() else options.model.parent
    folder = options.output or beside / "bilingual"
    settings = [f"--samples={options.samples}", f"--temperature={options.temperature}", f"--output={folder}"]
    status = hand_over(["evaluate", str(options.model), "--only=bilingual", *settings])
    if status == 0:
        (part,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["parts"]
        show(part["examples"][: options.show])
    return status


def show(examples: list[dict[str, str]]) -> None:
    """One row for each opening, one column for each model."""
    columns = list(examples[0])
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for example in examples:
        table.add_row(*(example[column].strip() for column in columns))
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1:]))
