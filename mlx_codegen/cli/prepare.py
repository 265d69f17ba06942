"""`mlx-codegen prepare`: tokenizer and token files of a run, without training yet."""

from mlx_codegen.cli.runs import (
    CodeDataOption,
    ConfigArgument,
    LanguageDataOption,
    NameOption,
    SetOption,
    config_from_options,
    run_folder,
)


def prepare(
    config: ConfigArgument,
    name: NameOption = None,
    overrides: SetOption = None,
    language_data: LanguageDataOption = None,
    code_data: CodeDataOption = None,
) -> None:
    """Read, clean, split and tokenise the data of a run; training then starts at once.

    Example: mlx-codegen prepare configs/tiny.yaml --code-data my_scripts/
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from mlx_codegen.cli.display import TrainingDisplay
    from mlx_codegen.data.prepare import read_manifest
    from mlx_codegen.training.lock import sole_user
    from mlx_codegen.training.preparation import prepare_run

    folder = run_folder(name, config)
    settings = config_from_options(config, overrides, language_data, code_data)
    with TrainingDisplay() as display, sole_user(folder.path):
        prepare_run(folder, settings, settings.phase_names(), display)
    table = Table(box=SIMPLE)
    table.add_column("source", no_wrap=True)
    for title in ("docs", "MB", "tokens", "held out", "repeats", "skipped"):
        table.add_column(title, justify="right")
    for phase in settings.phase_names():
        for source in read_manifest(folder.data(phase))["sources"]:
            counts = source["counts"]
            train, held_out = counts["train"], counts["validation"]
            table.add_row(
                f"{phase}/{source['name']}",
                f"{train['documents'] + held_out['documents']:,}",
                f"{(train['text_bytes'] + held_out['text_bytes']) / 1e6:.1f}",
                f"{train['tokens']:,}",
                f"{held_out['tokens']:,}",
                f"{counts['duplicates']:,}",
                f"{len(counts['skipped_files']):,}",
            )
    Console().print(table)
