"""subjectgen reproduce: the paper's tables in small, trained and measured here."""

from pathlib import Path
from typing import Annotated

import typer

OUT, DOCUMENT = Path("runs/reproduce"), Path("docs/reproduction.md")


def reproduce(
    only: Annotated[
        list[str] | None,
        typer.Option(help="table-1, table-6, table-7, table-c, layers or conditions; repeat. All if left out."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every training. The configuration's if left out.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Instead of --steps: as many, the same for all, as fit into this long.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: run every n-th training only, from the i-th on; several processes share --out.")
    ] = "1/1",
    out: Annotated[Path, typer.Option(help="The folder of trainings and results.")] = OUT,
    document: Annotated[Path, typer.Option(help="The file for the tables; a plot is put beside it.")] = DOCUMENT,
    config: Annotated[
        Path | None, typer.Option(help="What is trained and how it samples. The one that ships if left out.")
    ] = None,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Train and measure miniatures of the paper's tables, and write them beside the paper's figures.

    A row that is done is kept: stopped, the same command goes on.
    """
    from dataclasses import replace

    from subjectgen.evaluate.cases import Shard
    from subjectgen.reproduce.configuration import SHIPPED, read_configuration
    from subjectgen.reproduce.run import reproduce as reproduce_tables

    if steps is not None and hours is not None:
        raise ValueError(f"--steps {steps} --hours {hours:g}: expected one budget. Give one of them")
    configuration = read_configuration(config or SHIPPED)
    configuration = configuration if steps is None else replace(configuration, steps=steps)
    given = (("--config", config), ("--cutouts", cutouts), ("--out", None if out == OUT else out))
    options = [word for name, path in given if path is not None for word in (name, path.as_posix())]
    reproduce_tables(
        configuration,
        out,
        document,
        only=only or (),
        hours=hours,
        shard=Shard.parse(shard),
        cutouts=cutouts,
        options=options,
    )
    typer.echo(str(document))
