"""The same views as pages: one self-contained HTML file each, nothing fetched, light and dark, readable on a phone."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlx_codegen.inspect.attention import HeadMap
from mlx_codegen.inspect.candidates import NextTokens, percent
from mlx_codegen.inspect.pieces import Piece
from mlx_codegen.inspect.trace import TraceStep

FULL_SCALE = 65535
"""A weight of 1 in a page's data, which are whole numbers of two bytes."""


def tokens_page(text_pieces: list[Piece], origin: str) -> str:
    """The pieces of a text in colours, and the table of them."""
    return _render("tokens.html", pieces=text_pieces, bytes=sum(piece.bytes for piece in text_pieces), origin=origin)


def next_page(prompt: list[Piece], table: NextTokens, origin: str) -> str:
    """The table of the likeliest next tokens."""
    return _render("next.html", prompt=prompt, table=table, origin=origin)


def attention_page(text_pieces: list[Piece], maps: list[HeadMap], origin: str) -> str:
    """All maps small, one of them large, and what a chosen token looks at."""
    data = {
        "pieces": [piece.text for piece in text_pieces],
        "endsLine": [piece.ends_line for piece in text_pieces],
        "maps": [{"layer": each.layer, "head": each.head, "weights": packed(each.weights)} for each in maps],
        "fullScale": FULL_SCALE,
    }
    return _render("attention.html", data=data, origin=origin)


def trace_page(prompt: list[Piece], steps: list[TraceStep], seed: int, settings: str, origin: str) -> str:
    """The text with its tokens shaded by probability, the candidates of a chosen one, and the table of all steps."""
    data = [
        {
            "taken": step.taken.id,
            "text": step.taken.text,
            "probability": step.probability,
            "rank": step.rank,
            "remaining": step.remaining,
            "candidates": [(piece.id, piece.text, probability) for piece, probability in step.candidates],
        }
        for step in steps
    ]
    return _render("trace.html", prompt=prompt, steps=steps, data=data, seed=seed, settings=settings, origin=origin)


def packed(weights: mx.array) -> str:
    """The lower triangle of `(T, T)`, row by row, as base64 of little-endian 16-bit numbers."""
    square = np.array(weights.astype(mx.float32))
    triangle = square[np.tril_indices(len(square))]
    return base64.b64encode(np.round(triangle * FULL_SCALE).astype("<u2").tobytes()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
