"""What training speed is promised, what that asks of the chip it is promised on, and how far this machine is from it."""

from dataclasses import dataclass

from mlx_codegen.chips import find_chip

PROMISED_CHIP = "Apple M1 Max"
PROMISED = {"tiny": 30_000, "small": 25_000, "medium": 10_000}
"""Tokens per second of training, on a PROMISED_CHIP."""


@dataclass(frozen=True)
class Verdict:
    """One size against its promise. `rate` is measured, or on another chip projected, in tokens per second."""

    promised: int
    share_of_peak: float
    utilisation: float
    rate: float
    projected: bool

    @property
    def ratio(self) -> float:
        """Rate over promise."""
        return self.rate / self.promised

    def words(self) -> str:
        """`reached`, `not reached`, or what the projection says."""
        reached = "reached" if self.ratio >= 1 else "not reached"
        return f"projection: {reached}" if self.projected else reached


def verdict(size: str, rate: float, flops_per_token: int, peak_flops: float, chip: str) -> Verdict | None:
    """The verdict on a size of this name, trained at `rate` tokens per second on a chip; None where nothing is promised.

    The projection is the rate that an M1 Max would reach if the same share of its peak were used.
    """
    if size not in PROMISED:
        return None
    promised_chip = find_chip(PROMISED_CHIP)
    assert promised_chip is not None
    promised_peak = promised_chip.peak_flops("float16")
    utilisation = rate * flops_per_token / peak_flops
    projected = chip != PROMISED_CHIP
    return Verdict(
        promised=PROMISED[size],
        share_of_peak=PROMISED[size] * flops_per_token / promised_peak,
        utilisation=utilisation,
        rate=utilisation * promised_peak / flops_per_token if projected else rate,
        projected=projected,
    )
