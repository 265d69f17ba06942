"""Fetch shell scripts for the code phase from the hub, or collect your own with --use-existing.

Example: python scripts/download_code_data.py --use-existing ~/bin
"""

import sys
from pathlib import Path

from entry import DOWNLOADS, Parser, explained, positive_number, save_texts

from mlx_codegen.config import SourceConfig

SHELL_SCRIPTS = "ajibawa-2023/Shell-Code-Large"


def download(given: list[str]) -> None:
    """Stream scripts into data/downloads/ and say how to train on them."""
    parser = Parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--use-existing", type=Path, metavar="DIR", help="collect the scripts of this folder, download nothing")
    which.add_argument("--dataset", default=SHELL_SCRIPTS, help="data set id on the hub (default: %(default)s)")
    parser.add_argument("--text-column", help="its column with the script; default: text, content, code or script")
    parser.add_argument("--max-files", type=positive_number, help="stop after so many; default: all")
    options = parser.parse_args(given)
    own = options.use_existing
    name = "own_scripts" if own else "shell_scripts"
    origin = {"path": str(own)} if own else {"hub": options.dataset, "text_column": options.text_column}
    file = DOWNLOADS / f"{name}.jsonl"
    save_texts(SourceConfig.model_validate({"name": name, "max_documents": options.max_files, **origin}), file)
    print(f"train on it: python scripts/train_code.py --model-size tiny --code-data {file}")


if __name__ == "__main__":
    sys.exit(explained(lambda: download(sys.argv[1:])))
