"""What Apple's chips can do at most: GPU cores, memory bandwidth, peak arithmetic. Looked up by the name that MLX reports.

Sources. Cores and bandwidth: Apple's technical specifications of the Macs. `stated` is Apple's own figure for float32 (press
releases of M1 to M2 Ultra). Elsewhere the peak is computed from cores × clock: a GPU core does 128 fused multiply-adds a
cycle, and float16 no faster (measured for M1 and M2: github.com/philipturner/metal-benchmarks). Clocks, as measured by
others: M1, M2: metal-benchmarks; M3: 1.38 GHz (github.com/philipturner/applegpuinfo); M4: 1.578 GHz on an M4 Pro (powermetrics,
eclecticlight.co, January 2025); M5: 1.578 GHz on a MacBook Air (michaelstinkerings.org, 2026), taken for its larger
siblings, too. The M5's cores hold matrix units for float16 and bfloat16, about 1,024 FLOP a cycle (microbenchmark of the
same cores in an A19: tzakharko.github.io/apple-neural-accelerators-benchmark).
"""

import re
import subprocess
import sys
from dataclasses import dataclass

FLOP_PER_CORE_AND_CYCLE = 256
M5_HALF_FLOP_PER_CORE_AND_CYCLE = 1024


@dataclass(frozen=True)
class Chip:
    """One chip in one of its sizes. Bandwidth in GB/s, clock in GHz, `stated` in TFLOP/s of float32."""

    name: str
    gpu_cores: int
    bandwidth: float
    clock: float
    stated: float | None = None

    def peak_flops(self, precision: str) -> float:
        """FLOP/s that matrix products of `float32`, `float16` or `bfloat16` can reach at most."""
        if self.name.startswith("Apple M5") and precision != "float32":
            return M5_HALF_FLOP_PER_CORE_AND_CYCLE * self.gpu_cores * self.clock * 1e9
        if self.stated is not None:
            return self.stated * 1e12
        return FLOP_PER_CORE_AND_CYCLE * self.gpu_cores * self.clock * 1e9

    def peak_source(self, precision: str) -> str:
        """Where `peak_flops` comes from, for people."""
        half_of_m5 = self.name.startswith("Apple M5") and precision != "float32"
        return "stated by Apple" if self.stated is not None and not half_of_m5 else "computed from cores × clock"


# The largest of each name comes last: it stands for the name where the number of cores is not known.
CHIPS = (
    Chip("Apple M1", 7, 68.3, 1.278),
    Chip("Apple M1", 8, 68.3, 1.278, stated=2.6),
    Chip("Apple M1 Pro", 14, 204.8, 1.296),
    Chip("Apple M1 Pro", 16, 204.8, 1.296, stated=5.2),
    Chip("Apple M1 Max", 24, 409.6, 1.296),
    Chip("Apple M1 Max", 32, 409.6, 1.296, stated=10.4),
    Chip("Apple M1 Ultra", 48, 819.2, 1.296),
    Chip("Apple M1 Ultra", 64, 819.2, 1.296, stated=21.0),
    Chip("Apple M2", 8, 102.4, 1.398),
    Chip("Apple M2", 10, 102.4, 1.398, stated=3.6),
    Chip("Apple M2 Pro", 16, 204.8, 1.398),
    Chip("Apple M2 Pro", 19, 204.8, 1.398, stated=6.8),
    Chip("Apple M2 Max", 30, 409.6, 1.398),
    Chip("Apple M2 Max", 38, 409.6, 1.398, stated=13.6),
    Chip("Apple M2 Ultra", 60, 819.2, 1.398),
    Chip("Apple M2 Ultra", 76, 819.2, 1.398, stated=27.2),
    Chip("Apple M3", 8, 102.4, 1.38),
    Chip("Apple M3", 10, 102.4, 1.38),
    Chip("Apple M3 Pro", 14, 153.6, 1.38),
    Chip("Apple M3 Pro", 18, 153.6, 1.38),
    Chip("Apple M3 Max", 30, 307.2, 1.38),
    Chip("Apple M3 Max", 40, 409.6, 1.38),
    Chip("Apple M3 Ultra", 60, 819.2, 1.38),
    Chip("Apple M3 Ultra", 80, 819.2, 1.38),
    Chip("Apple M4", 8, 120.0, 1.578),
    Chip("Apple M4", 10, 120.0, 1.578),
    Chip("Apple M4 Pro", 16, 273.0, 1.578),
    Chip("Apple M4 Pro", 20, 273.0, 1.578),
    Chip("Apple M4 Max", 32, 410.0, 1.578),
    Chip("Apple M4 Max", 40, 546.0, 1.578),
    Chip("Apple M5", 8, 153.6, 1.578),
    Chip("Apple M5", 10, 153.6, 1.578),
    Chip("Apple M5 Pro", 16, 307.0, 1.578),
    Chip("Apple M5 Pro", 20, 307.0, 1.578),
    Chip("Apple M5 Max", 32, 460.0, 1.578),
    Chip("Apple M5 Max", 40, 614.0, 1.578),
    Chip("Apple M5 Ultra", 80, 1228.0, 1.578),
)


def find_chip(name: str, gpu_cores: int | None = None) -> Chip | None:
    """The chip that MLX calls `name`, in the size with so many cores or else the largest; None for one not in the table."""
    named = [chip for chip in CHIPS if chip.name == name]
    exact = [chip for chip in named if chip.gpu_cores == gpu_cores]
    return next(reversed(exact or named), None)


def gpu_core_count() -> int | None:
    """GPU cores of this Mac as `ioreg` knows them; None elsewhere, or where it does not say."""
    if sys.platform != "darwin":
        return None
    command = ["ioreg", "-r", "-c", "AGXAccelerator", "-d", "1"]
    try:
        return core_count_in(subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10).stdout)
    except (OSError, subprocess.SubprocessError):
        return None


def core_count_in(ioreg_text: str) -> int | None:
    """The number behind `"gpu-core-count" =` in what `ioreg` prints."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', ioreg_text)
    return int(found[1]) if found else None
