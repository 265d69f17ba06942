"""Write the computed tables of docs/SCALING.md between their marks: `small` and `medium` on 1 to 8 Macs.

python docs/make_scaling_tables.py
"""

import re
from pathlib import Path

import mlx_codegen  # noqa: F401  (first of all: it loads the fast BLAS)
from mlx_codegen.chips import find_chip
from mlx_codegen.config import load_run_config, repository_folder
from mlx_codegen.costs import model_costs
from mlx_codegen.scaling import LINKS, Link, all_reduce_seconds, efficiency

PAGE = Path(__file__).parent / "SCALING.md"
MACHINES = (1, 2, 4, 8)
CONFIGS = ("small", "medium")
CHIP, PRECISION, SHARE_OF_PEAK = "Apple M4 Max", "bfloat16", 0.5
MARKS = re.compile(r"(<!-- computed -->\n).*(<!-- end of computed -->)", re.DOTALL)


def tables() -> str:
    """Markdown of all tables."""
    chip = find_chip(CHIP)
    assert chip is not None
    flops_per_second = SHARE_OF_PEAK * chip.peak_flops(PRECISION)
    return "\n".join(_table(name, flops_per_second) for name in CONFIGS)


def _table(name: str, flops_per_second: float) -> str:
    config = load_run_config(repository_folder("configs") / f"{name}.yaml")
    settings = config.phase("language")
    assert settings is not None
    costs = model_costs(config.model, settings.batch_size)
    tokens = settings.batch_size * settings.gradient_accumulation * config.model.context_length
    compute = tokens * costs.training_flops_per_token / flops_per_second
    size = costs.weights_bytes  # a gradient is as large as its weight
    lines = [
        f"`{name}`: {tokens:,} tokens a step and Mac, computed in {1e3 * compute:,.0f} ms ({tokens / compute:,.0f} tokens/s); "
        f"{size / 1e6:,.0f} MB of gradients.",
        "",
        "| Macs | " + " | ".join(f"{link.name}: exchange, tokens/s" for link in LINKS) + " |",
        "| --- |" + " --- |" * len(LINKS),
    ]
    for machines in MACHINES:
        cells = [_cell(machines, compute, size, tokens, link) for link in LINKS]
        lines.append(f"| {machines} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(machines: int, compute: float, size: float, tokens: int, link: Link) -> str:
    if machines == 1:
        return f"{tokens / compute:,.0f}"
    share = efficiency(compute, machines, size, link)
    best = efficiency(compute, machines, size, link, overlapped=True)
    exchange = all_reduce_seconds(machines, size, link)
    written = f"{1e3 * exchange:,.0f} ms" if exchange < 1 else f"{exchange:,.1f} s"
    return f"{written}, **{share * machines * tokens / compute:,.0f}** ({share:.0%}; at best {best:.0%})"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(lambda found: found[1] + tables() + found[2], text), encoding="utf-8")
