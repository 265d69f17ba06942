"""Evaluate every kept checkpoint of a run with few samples, and compare them: what did training on change?

Example: python scripts/evaluate_checkpoints.py runs/tiny --only syntax
"""

import sys
from pathlib import Path

from entry import Parser, explained, hand_over, positive_number

from mlx_codegen.evaluation.report_files import own_folder
from mlx_codegen.evaluation.run_facts import kept_checkpoints


def evaluate_all(given: list[str]) -> int:
    """`mlx-codegen evaluate` for each, into a folder of its own, then `mlx-codegen compare` for all."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--only", action="append", metavar="PART", help="a part; repeatable; default: syntax and function")
    parser.add_argument("--samples", type=positive_number, default=1, help="texts for each prompt (default: %(default)s)")
    parser.add_argument("--seen", type=int, default=1, help="prompts of each trained task; 0 is quick (default: %(default)s)")
    parser.add_argument("--unseen", type=int, default=1, help="prompts of each held-out task (default: %(default)s)")
    parser.add_argument("--max-tokens", type=positive_number, default=200, help="longest answer (default: %(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="draw a picture, too")
    options = parser.parse_args(given)
    checkpoints: list[Path] = []
    if status := explained(lambda: checkpoints.extend(kept_checkpoints(options.run))):
        return status
    parts = [f"--only={part}" for part in options.only or ("syntax", "function")]
    settings = [f"--{name}={vars(options)[name.replace('-', '_')]}" for name in ("samples", "seen", "unseen", "max-tokens")]
    for checkpoint in checkpoints:
        if status := hand_over(["evaluate", str(checkpoint), f"--output={own_folder(checkpoint)}", *parts, *settings]):
            return status
    if len(checkpoints) == 1:
        print(f"{options.run} keeps one checkpoint: nothing to compare it with")
        return 0
    picture = [f"--png={options.png}"] if options.png else []
    return hand_over(["compare", *map(str, checkpoints), *picture])


if __name__ == "__main__":
    sys.exit(evaluate_all(sys.argv[1:]))
