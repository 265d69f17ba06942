"""Fetch English for the language phase: TinyStories, or books with --use-bookcorpus.

Example: python scripts/download_language_data.py --use-tinystories --max-stories 100000
"""

import sys

from entry import DOWNLOADS, Parser, explained, positive_number, save_texts

from mlx_codegen.config import SourceConfig

TINYSTORIES = "roneneldan/TinyStories"
BOOKCORPUS = "rojagtap/bookcorpus"  # bookcorpus/bookcorpus needs a loading script, which `datasets` no longer runs


def download(given: list[str]) -> None:
    """Stream a data set into data/downloads/ and say how to train on it."""
    parser = Parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--use-tinystories", action="store_true", help=f"short stories, {TINYSTORIES} (default)")
    which.add_argument("--use-bookcorpus", action="store_true", help=f"sentences of books, {BOOKCORPUS}")
    parser.add_argument("--max-stories", type=positive_number, help="stop after so many; default: all")
    options = parser.parse_args(given)
    name, hub = ("bookcorpus", BOOKCORPUS) if options.use_bookcorpus else ("tinystories", TINYSTORIES)
    file = DOWNLOADS / f"{name}.jsonl"
    save_texts(SourceConfig(name=name, hub=hub, max_documents=options.max_stories), file)
    print(f"train on it: python scripts/train_language.py --model-size tiny --data-dir {file}")


if __name__ == "__main__":
    sys.exit(explained(lambda: download(sys.argv[1:])))
