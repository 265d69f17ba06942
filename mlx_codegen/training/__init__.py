"""One phase after the other: optimizer, compiled step, trainer, checkpoints."""
