"""How well a tokenizer fits a text."""

from collections import Counter
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
    text_bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    """Tokens that stand for a single byte, for want of a learned piece."""
    failures: int = 0
    """Documents that did not come back as they were."""
    counts: Counter[int] = field(default_factory=Counter)
    """How often each id was used."""

    @property
    def used(self) -> set[int]:
        """The ids that were used at all."""
        return set(self.counts)

    @property
    def characters_per_token(self) -> float:
        """0 for no text."""
        return self.characters / max(1, self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """0 for no text."""
        return self.text_bytes / max(1, self.tokens)

    @property
    def byte_share(self) -> float:
        """Share of tokens that are single bytes."""
        return self.byte_tokens / max(1, self.tokens)


def measure(tokenizer: Tokenizer, documents: Iterable[str]) -> Measurement:
    """Encode and decode every document; a document that comes back changed is a failure."""
    result = Measurement()
    for document in documents:
        ids = tokenizer.encode(document)
        result.documents += 1
        result.characters += len(document)
        result.text_bytes += len(document.encode())
        result.tokens += len(ids)
        result.counts.update(ids)
        result.failures += tokenizer.decode(ids) != document
    result.byte_tokens = sum(count for index, count in result.counts.items() if tokenizer.is_byte(index))
    return result


def most_frequent(result: Measurement, tokenizer: Tokenizer, count: int) -> list[str]:
    """The pieces that come most often."""
    return [tokenizer.piece(index) for index, _ in result.counts.most_common(count)]


def longest(result: Measurement, tokenizer: Tokenizer, count: int) -> list[str]:
    """The longest pieces in use, of equal ones the more frequent first."""
    pieces = [(tokenizer.piece(index), uses) for index, uses in result.counts.items() if not tokenizer.is_byte(index)]
    return [piece for piece, _ in sorted(pieces, key=lambda entry: (-len(entry[0]), -entry[1]))[:count]]
