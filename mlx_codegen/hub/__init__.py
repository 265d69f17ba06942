"""Models as Hugging Face folders, which mlx-lm, transformers and others open: out, and back in."""

from mlx_codegen.hub.layouts import hugging_face_config, hugging_face_weights

__all__ = ["hugging_face_config", "hugging_face_weights"]
