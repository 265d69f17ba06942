"""What is trained, where, how far: `mlx-codegen status`.

Example: python scripts/status.py runs/tiny
"""

import sys

from entry import hand_over

if __name__ == "__main__":
    sys.exit(hand_over(["status", *sys.argv[1:]]))
