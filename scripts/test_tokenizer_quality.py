"""How well a tokenizer fits English, scripts, one-line commands and other text: `mlx-codegen tokenizer report`.

Example: python scripts/test_tokenizer_quality.py runs/tiny --data my_python_files/
"""

import sys

from entry import Parser, hand_over, positive_number


def arguments(given: list[str]) -> list[str]:
    """The command line of `mlx-codegen tokenizer report` that does the same."""
    parser = Parser(__doc__)
    parser.add_argument("tokenizer", nargs="?", default="runs/demo", help="a tokenizer.model or a run (default: %(default)s)")
    parser.add_argument(
        "--data", action="append", default=[], metavar="SOURCE", help="more text: a file or folder (.py, .sh, ...)"
    )
    parser.add_argument("--max-documents", type=positive_number, default=2000, help="of each source (default: %(default)s)")
    parser.add_argument(
        "--pieces", type=positive_number, default=12, help="so many frequent and long pieces (default: %(default)s)"
    )
    options = parser.parse_args(given)
    named = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("tokenizer", "max-documents", "pieces")]
    return ["tokenizer", "report", *named, "--data=bundled", *(f"--data={source}" for source in options.data)]


if __name__ == "__main__":
    sys.exit(hand_over(arguments(sys.argv[1:])))
