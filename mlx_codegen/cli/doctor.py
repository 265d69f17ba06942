"""`mlx-codegen doctor`: what this machine has, and what to do about what it has not."""

import typer


def doctor() -> None:
    """Check chip, memory, MLX, BLAS, precision, disk and the tools that check scripts."""
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.machine import machine_report

    table = Table("", "what", "found", "what to do")
    findings = machine_report()
    for finding in findings:
        mark = "[green]ok[/]" if not finding.advice else "[yellow]!![/]"
        table.add_row(mark, finding.what, finding.found, finding.advice)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    if any(finding.needed and finding.advice for finding in findings):
        raise typer.Exit(1)
