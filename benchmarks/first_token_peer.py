"""What `mlx_lm.generate` does up to its first token, without a tokenizer: `first_token_peer.py FOLDER ID ID ...`.

Imports nothing of ours, as a person who uses mlx-lm does not.
"""

import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model

folder, *ids = sys.argv[1:]
model, _ = load_model(Path(folder))
sampler = make_sampler(0.8, top_p=0.9, top_k=50)
for token, _ in generate_step(mx.array([int(index) for index in ids]), model, max_tokens=8, sampler=sampler):
    print(token, flush=True)
