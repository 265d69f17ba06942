"""Write the bundled bash tasks as a data set of files: `mlx-codegen corpus build`.

Example: python scripts/generate_bash_dataset.py data/downloads/bash_dataset
"""

import sys

from entry import hand_over

if __name__ == "__main__":
    sys.exit(hand_over(["corpus", "build", *sys.argv[1:]]))
