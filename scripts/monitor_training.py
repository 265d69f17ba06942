"""Follow a run while it trains, or see it on one page with --summary: `mlx-codegen watch`.

Example: python scripts/monitor_training.py runs/tiny
"""

import sys

from entry import hand_over

if __name__ == "__main__":
    sys.exit(hand_over(["watch", *sys.argv[1:]]))
