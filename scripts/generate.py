"""Generate a script from a request in English.

Example: python scripts/generate.py --prompt "Create a backup script" --temperature 0.5
"""

import sys

from entry import Parser, hand_over


def arguments(given: list[str]) -> list[str]:
    """The command line of `mlx-codegen generate` that does the same."""
    parser = Parser(__doc__)
    parser.add_argument("--prompt", required=True, help="what you want; \\n means a newline")
    parser.add_argument("--checkpoint", help="run folder or checkpoint; default: the newest run")
    parser.add_argument("--max-length", type=int, dest="max_tokens", help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens; 0 from all")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens with this share of probability")
    parser.add_argument("--seed", type=int, help="same seed, same text")
    options = vars(parser.parse_args(given))
    named = ((f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None)
    return ["generate", *(f"{name}={value}" for name, value in named)]


if __name__ == "__main__":
    sys.exit(hand_over(arguments(sys.argv[1:])))
