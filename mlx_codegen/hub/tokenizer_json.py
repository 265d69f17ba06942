"""Our SentencePiece tokenizer as `tokenizer.json`, which the `tokenizers` library, transformers and mlx-lm read.

SentencePiece joins the two neighbours whose piece has the best score, the leftmost first. The other library joins the
pair that comes first in a list of merges. The list is every way to cut a piece into two pieces, best piece first.

Blanks stay blanks in it: SentencePiece writes U+2581 for them, and here that character is like any other that has no
piece of its own and falls back to its bytes, as `Tokenizer` has it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import CONTROL_TOKENS, END_OF_TEXT, PADDING, PROBE, Tokenizer

if TYPE_CHECKING:
    import tokenizers

CHAT_TEMPLATE = Path(__file__).parent / "templates" / "chat_template.jinja"


def hugging_face_tokenizer(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """The same tokenizer for the `tokenizers` library: the same ids for every text that spells no control token.

    With special tokens, which is the default there, end-of-text comes first: every document opens with it.
    Raises UserError where the two do not agree.
    """
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    vocabulary = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    result = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=_merges(tokenizer), byte_fallback=True))
    result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[list-item]
    control = [name for name in CONTROL_TOKENS if name in vocabulary]
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    result.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, tokenizer.end_of_text_id)]
    )
    if result.encode(PROBE, add_special_tokens=False).ids != tokenizer.encode(PROBE):
        raise UserError("this tokenizer cannot be written for the tokenizers library: it would give other ids there")
    return result


def tokenizer_config(context_length: int, *, chat: bool) -> dict[str, Any]:
    """`tokenizer_config.json`. With `chat`, a template puts a request as the model knows it: as a comment."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        config["chat_template"] = CHAT_TEMPLATE.read_text(encoding="utf-8").rstrip("\n")
    return config


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Pairs of pieces that make a third, in the order in which SentencePiece prefers the third."""
    scores = tokenizer.piece_scores()
    found: list[tuple[float, int, tuple[str, str]]] = []
    for piece, score in scores.items():
        for cut in range(len(piece) - 1, 0, -1):  # of the ways to make one piece, the longer left part first
            if piece[:cut] in scores and piece[cut:] in scores:
                found.append((-score, len(found), (piece[:cut], piece[cut:])))
    return [pair for *_, pair in sorted(found)]
