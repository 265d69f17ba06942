"""Figures with their uncertainty: a rate without the number of samples behind it says little.

Sources: the bootstrap (Efron, 1979); pass@k without bias (Chen et al., 2021, arXiv 2107.03374, equation 1).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
Z_SQUARED = 1.96**2


@dataclass(frozen=True)
class Figure:
    """A mean with the interval in which it lies with 95 % confidence, and how many samples stand behind it."""

    value: float
    low: float
    high: float
    samples: int
    unit: str = "%"
    """`%` for a rate (the value is a share from 0 to 1), else what the value counts."""
    target: float | None = None
    """What the project wants to reach, where it wants something."""
    prompts: dict[str, tuple[float, int]] = field(default_factory=dict, repr=False)
    """By prompt, the sum of its values and how many there are, so that two models can be compared prompt by prompt."""


@dataclass
class PartResult:
    """What one part of the evaluation found."""

    name: str
    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the figures: what was left out, what overlaps, what was missing."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """A few texts, good and bad, for a person to judge."""


def prompt_key(*parts: str) -> str:
    """A short name for a prompt: the same in every evaluation that has it."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


def mean_of(
    groups: Sequence[Sequence[float]] | Mapping[str, Sequence[float]], unit: str = "%", target: float | None = None
) -> Figure:
    """The mean over all values, with its bootstrap interval.

    Values of one group (the samples of one prompt) resemble each other, so whole groups are drawn again and not values:
    four samples of a prompt are not worth four prompts. Groups with a name (see `prompt_key`) are kept in the figure.
    """
    named = groups if isinstance(groups, Mapping) else {}
    filled = [np.asarray(group, dtype=float) for group in (named.values() if named else groups) if len(group)]
    if not filled:
        return Figure(float("nan"), float("nan"), float("nan"), 0, unit, target)
    prompts = {name: (float(sum(group)), len(group)) for name, group in named.items() if len(group)}
    sums = np.array([group.sum() for group in filled])
    counts = np.array([group.size for group in filled])
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(filled), (RESAMPLES, len(filled)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if unit == "%" and low == high and low in (0, 1):
        low, high = _wilson(float(low), len(filled))
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()), unit, target, prompts)


def _wilson(share: float, groups: int) -> tuple[float, float]:
    """The interval of a share of 0 or 1, from which the bootstrap can only draw the same again (Wilson, 1927)."""
    room = Z_SQUARED / (groups + Z_SQUARED)
    return (0.0, room) if share == 0 else (1 - room, 1.0)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that at least one of k samples passes, estimated without bias from n samples of which c passed.

    1 - C(n - c, k) / C(n, k). Raises ValueError for k > n.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))
