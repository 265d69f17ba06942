"""Evaluate a model on every part, those too that take long: `mlx-codegen evaluate` with all of them.

Example: python scripts/full_evaluation.py runs/tiny --samples 4
"""

import sys

from entry import hand_over

from mlx_codegen.evaluation.report import PARTS

if __name__ == "__main__":
    sys.exit(hand_over(["evaluate", *sys.argv[1:], *(f"--only={part}" for part in PARTS)]))
