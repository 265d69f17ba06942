"""How much faster several machines train: a model of the time of one data-parallel step. docs/SCALING.md is made with it.

A step is the arithmetic, which machines share, and the all-reduce of the gradients, which costs the more the slower the link.
"""

from dataclasses import dataclass

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Link:
    """What connects the machines. `bytes_per_second` as programs get it, in one direction; `latency` of a message, in seconds.

    On a `shared` medium (Wi-Fi) all machines send through one channel, and each byte passes it twice: to the access point, and
    from there to its receiver.
    """

    name: str
    bytes_per_second: float
    latency: float
    shared: bool = False


# Measured by others where there is a source, else assumed; docs/SCALING.md says which.
THUNDERBOLT_5 = Link("Thunderbolt 5 (JACCL)", 7.0e9, 10e-6)
ETHERNET_10 = Link("10 Gb/s Ethernet", 1.17e9, 100e-6)
WIFI = Link("Wi-Fi", 150e6, 5e-3, shared=True)
LINKS = (THUNDERBOLT_5, ETHERNET_10, WIFI)


def all_reduce_seconds(machines: int, size_bytes: float, link: Link) -> float:
    """Sum of `size_bytes` over all machines by a ring: 2(n-1) messages one after the other, each of 1/n of the bytes.

    Every machine sends 2(n-1)/n of the buffer (Patarasuk and Yuan, 2009, doi 10.1016/j.jpdc.2008.09.002). It is an upper bound
    where each pair of machines has a cable of its own: then several can be used at once.
    """
    messages = 2 * (machines - 1)
    sent_by_each = messages / machines * size_bytes
    through_the_link = 2 * machines * sent_by_each if link.shared else sent_by_each
    return through_the_link / link.bytes_per_second + messages * link.latency


def step_seconds(compute_seconds: float, communication_seconds: float, *, overlapped: bool) -> float:
    """One step: one after the other, as training does it; or at best, with the all-reduce behind the arithmetic."""
    if overlapped:
        return max(compute_seconds, communication_seconds)
    return compute_seconds + communication_seconds


def efficiency(compute_seconds: float, machines: int, size_bytes: float, link: Link, *, overlapped: bool = False) -> float:
    """Tokens a second of n machines as a share of n times those of one, each working on a full batch of its own."""
    communication = all_reduce_seconds(machines, size_bytes, link)
    return compute_seconds / step_seconds(compute_seconds, communication, overlapped=overlapped)
