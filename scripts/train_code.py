"""Train the code phase: bash, from what the language phase of the same run learned or from --language-checkpoint.

Example: python scripts/train_code.py --model-size tiny --code-data my_scripts/
"""

import sys
from pathlib import Path

from entry import hand_over, training_arguments, training_parser


def arguments(given: list[str]) -> list[str]:
    """The command line of `mlx-codegen train` that does the same."""
    parser = training_parser(__doc__)
    parser.add_argument("--code-data", "--data-dir", type=Path, help="file or folder of scripts; default: the bundled tasks")
    parser.add_argument("--language-checkpoint", type=Path, help="start from these weights; default: this run's language phase")
    options = parser.parse_args(given)
    return training_arguments(options, "code", code_data=options.code_data, init_from=options.language_checkpoint)


if __name__ == "__main__":
    sys.exit(hand_over(arguments(sys.argv[1:])))
