"""Compare a run with what it must beat: random weights, a 3-gram model, and a model that skipped the language phase.

The baselines are measured once, with the settings of the run's report, and stored; --renew measures them anew.

Example: python scripts/compare_baseline.py runs/tiny --code-only runs/tiny-code-only
"""

import datetime
import sys
from pathlib import Path

from entry import Parser, explained

from mlx_codegen.cli.compare import load_reports, settings_like
from mlx_codegen.cli.comparison_display import draw_comparison
from mlx_codegen.cli.evaluate import measure
from mlx_codegen.evaluation.baselines import BASELINES, measure_baseline, read_stored, store, trained
from mlx_codegen.evaluation.compare import StoredReport, compare, short_names
from mlx_codegen.evaluation.report_files import stored
from mlx_codegen.generation.engine import find_checkpoint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from fingerprint import commit, machine  # type: ignore[import-not-found] # noqa: E402

CODE_ONLY = "code-only"


def compare_baseline(given: list[str]) -> None:
    """Measure what is missing, store it, and show all beside the run."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder; it is evaluated if it has no report yet")
    parser.add_argument("--code-only", type=Path, metavar="RUN", help="an equally long run without language phase: stored, too")
    parser.add_argument("--renew", action="store_true", help="measure the stored baselines anew")
    default = BENCHMARKS / "results" / "baseline_v0.json"
    parser.add_argument("--file", type=Path, default=default, help="where they are stored (default: benchmarks/results)")
    options = parser.parse_args(given)
    checkpoint = find_checkpoint(options.run)
    baselines = {} if options.renew else read_stored(options.file)
    (report,) = load_reports([options.run], evaluate=True, like=next(iter(baselines.values()), None))
    for name in BASELINES:
        if name not in baselines:
            baselines[name] = stored(measure_baseline(name, checkpoint, settings_like(report), measure))
            save(options.file, baselines)
    if options.code_only is not None:
        (baselines[CODE_ONLY],) = load_reports([options.code_only], evaluate=True, like=report)
        baselines[CODE_ONLY].model = trained(find_checkpoint(options.code_only))
        save(options.file, baselines)
    baselines = read_stored(options.file)  # without values of single prompts: today's outcome is the one of every later day
    (name,) = short_names([options.run])
    draw_comparison(compare([name, *baselines], [report, *baselines.values()]))
    for baseline in baselines.values():
        print(baseline.model)
    print(options.file)


def save(file: Path, baselines: dict[str, StoredReport]) -> None:
    """After each baseline: an interrupted measurement loses no other."""
    time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    store(file, baselines, {"time": time, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    sys.exit(explained(lambda: compare_baseline(sys.argv[1:])))
