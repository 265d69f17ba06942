"""How well a tokenizer fits a text."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_codegen.tokenizer import Tokenizer

# OpenAI's rule of thumb for English text with the GPT-2 vocabulary: "1 token ~= 4 chars in English"
# (help.openai.com, "What are tokens and how to count them?").
GPT2_CHARACTERS_PER_TOKEN = 4.0


@dataclass
class Measurement:
    """Counts over some documents."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    failures: int = 0
    used: set[int] = field(default_factory=set)


def measure(tokenizer: Tokenizer, documents: Iterable[str]) -> Measurement:
    """Encode and decode every document; a document that comes back changed is a failure."""
    result = Measurement()
    for document in documents:
        ids = tokenizer.encode(document)
        result.documents += 1
        result.characters += len(document)
        result.tokens += len(ids)
        result.used.update(ids)
        result.failures += tokenizer.decode(ids) != document
    return result
