"""Train the language phase: English first. Then: python scripts/train_code.py, with the same --model-size and --name.

Example: python scripts/train_language.py --model-size tiny --data-dir data/downloads/tinystories.jsonl
"""

import sys
from pathlib import Path

from entry import hand_over, training_arguments, training_parser


def arguments(given: list[str]) -> list[str]:
    """The command line of `mlx-codegen train` that does the same."""
    parser = training_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, help="file or folder of English text; default: the bundled stories")
    parser.add_argument("--code-data", type=Path, help="scripts of the later code phase, so that the tokenizer knows them too")
    options = parser.parse_args(given)
    return training_arguments(options, "language", language_data=options.data_dir, code_data=options.code_data)


if __name__ == "__main__":
    sys.exit(hand_over(arguments(sys.argv[1:])))
