"""docs/reproduction.md, from results alone: our figures beside the paper's, and where the order does not agree."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from subjectgen.evaluate.cases import Figure
from subjectgen.files import whole_file
from subjectgen.reproduce.configuration import GUIDANCE, PAPER, TAU, Configuration, Row, Table
from subjectgen.reproduce.measure import COMPARED_WITH, FIGURES, by_subject
from subjectgen.reproduce.order import CHANCE, Comparison, Scored, Scores, comparisons
from subjectgen.reproduce.plot import plot_layers
from subjectgen.reproduce.row import read_result
from subjectgen.reproduce.words import about_chance, about_layers, about_order

Results = dict[str, dict[int, dict]]  # by label and seed
RowResults = Sequence[tuple[Row, dict[int, dict]]]  # rows with what they gave by seed
Compared = dict[Figure, list[Comparison]]  # all pairs of a table's rows


def write_document(configuration: Configuration, out: Path, document: Path, options: Sequence[str] = ()) -> None:
    """Write what is there of the tables, and the plot of the layers beside it."""
    found = {name: results_of(table, configuration.seeds, out) for name, table in configuration.tables.items()}
    run = rows_of_run(configuration, found)
    pairs = {name: compared(table, found[name], run) for name, table in configuration.tables.items()}
    sections = [
        section(configuration.tables[name], results, pairs[name], command(name, configuration, options))
        for name, results in found.items()
        if results
    ]
    missing = [table.title for name, table in configuration.tables.items() if not found[name]]
    shown = [result for results in found.values() for each in results.values() for result in each.values()]
    seeds = sorted({seed for results in found.values() for each in results.values() for seed in each})
    made = [pair for each in pairs.values() for those in each.values() for pair in those]
    head = [introduction(configuration, seeds), *about_chance(made), made_from(configuration, shown)]
    parts = [*head, *sections, *layers_section(configuration, out, document)]
    if missing:
        parts.append(f"Not run yet: {'; '.join(missing)}.")
    with whole_file(document) as path:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def results_of(table: Table, seeds: Sequence[int], out: Path) -> Results:
    """What has been run of a table's rows."""
    found = {row.label: {seed: read_result(out, row, seed) for seed in seeds} for row in table.rows}
    return {
        label: there
        for label, each in found.items()
        if (there := {seed: result for seed, result in each.items() if result is not None})
    }


def introduction(configuration: Configuration, seeds: Sequence[int]) -> str:
    """What was done, in numbers of the configuration. seeds: those that have run."""
    network, steps, size = configuration.network, configuration.steps, configuration.batch_size
    again = f" ({configuration.num_batches * size} different ones, over and over)"
    repeated = again if steps > configuration.num_batches else ""
    meanings = "\n".join(f"- {figure.heading}: {figure.meaning}." for figure in FIGURES)
    paragraphs = [
        "# The paper's tables in small",
        "Written by `subjectgen reproduce` from its results; not by hand.",
        f"Each row trains an aggregator and a DiT of width {network.width}, {network.num_layers} double and "
        f"{network.num_single_layers} single blocks, from nothing on the emoji world: {steps} steps of {size} "
        f"pictures, {steps * size} in all{repeated}, whatever its phases, the same ones for every row. The paper "
        "trains a LoRA of a large DiT that could paint before.",
        f"Where a row does not say otherwise, it is sampled in {configuration.num_inference_steps} steps as the paper "
        f"has it: meaning alone down to sigma {TAU[0]:g}, both down to {TAU[1]:g}, identity alone below; guidance "
        f"{GUIDANCE:g}, here away from a pass without conditions.",
        f"All rows answer the same {configuration.num_prompts} prompts about subjects never trained on. A cell is the "
        f"mean over those of the seeds {', '.join(map(str, seeds)) or '(none yet)'} that its row has run with, and "
        "where there are several, their spread from least to greatest. By chance, closeness is 50 %.",
        meanings,
        "The paper's figures are of photographs, as secondary sources quote them: only orders can be compared. Two "
        f"rows are told apart where the {100 - 100 * CHANCE:g} % interval of their difference, given as ±, does not "
        "hold zero. It is Student's, over subjects and seeds; what is asked about one subject counts as one. "
        + about_seeds(seeds),
    ]
    return "\n\n".join(paragraphs)


def about_seeds(seeds: Sequence[int]) -> str:
    """What is known of seeds that have not run."""
    if len(seeds) < 2:
        return "Of other seeds one seed says nothing: single trainings are told apart, not ways to train."
    return (
        f"How far {len(seeds)} seeds move one difference says little, so it is taken from all trainings together, as "
        "if all depended on their seeds alike; where two rows sample from one training, from such rows."
    )


def made_from(configuration: Configuration, results: Sequence[dict]) -> str:
    """Which frozen networks and which prompts: one of each, or the tables are of several."""
    frozen, cases = (", ".join(sorted({result[name][:12] for result in results})) for name in ("frozen", "cases"))
    return (
        f"Autoencoder and MLLM are those of `{configuration.model}`, frozen (sha256 {frozen or 'of nothing yet'}); "
        f"prompts and seeds have sha256 {cases or 'of nothing yet'}."
    )


def section(table: Table, results: Results, pairs: Compared, typed: str) -> str:
    """A table, what its order says, and its command."""
    parts = [f"## {table.title}", *([table.note] if table.note else []), grid(table, results)]
    parts += [*ordered(pairs), f"`{typed}`"]
    return "\n\n".join(parts)


def grid(table: Table, results: Results) -> str:
    """Our figures, and the paper's where it has any."""
    paper = PAPER if any(row.paper for row in table.rows) else {}
    heads = ["", *(figure.label for figure in FIGURES), *(f"paper: {head}" for head in paper.values())]
    lines = [heads, ["--", *["--:"] * (len(heads) - 1)]]
    for row in table.rows:
        ours = [cell(figure, results.get(row.label, {})) for figure in FIGURES]
        lines.append([row.label, *ours, *(f"{row.paper[key]:.4f}" if key in row.paper else "" for key in paper)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(figure: Figure, results: dict[int, dict]) -> str:
    """Mean over seeds, and their spread where there are several."""
    means = [figure.scale * float(scores_of(result, figure).mean()) for result in results.values()]
    if not means:
        return "not run"
    spread = f" ({min(means):.1f} to {max(means):.1f})" if len(means) > 1 else ""
    return f"{np.mean(means):.1f}{spread}"


def scores_of(result: dict, figure: Figure) -> np.ndarray:
    """Of each subject."""
    return by_subject(np.array([each[figure.name] for each in result["scores"]]))


def ordered(pairs: Compared) -> list[str]:
    """For each figure a paragraph about the order of the rows."""
    if not pairs:
        return ["Not all rows have been run: nothing is said of their order."]
    return [about_order(figure, those) for figure, those in pairs.items()]


def rows_of_run(configuration: Configuration, found: dict[str, Results]) -> RowResults:
    """Each row of all tables that has results, with these; rows that are trained and sampled alike are one."""
    rows = {}
    for name, table in configuration.tables.items():
        for row in table.rows:
            if row.label in found[name]:
                rows.setdefault((row.training, row.sampling), (row, found[name][row.label]))
    return list(rows.values())


def compared(table: Table, results: Results, run: RowResults) -> Compared:
    """For each figure all pairs of rows, from seeds that all rows have; nothing if a row is missing."""
    if len(results) < len(table.rows):
        return {}
    seeds = sorted(set.intersection(*(set(each) for each in results.values())))
    if not seeds:
        return {}
    rows = [(row, results[row.label]) for row in table.rows]
    run = [(row, there) for row, there in run if there.keys() >= set(seeds)]
    return {figure: comparisons(scored(rows, seeds, figure), scored(run, seeds, figure)) for figure in FIGURES}


def scored(rows: RowResults, seeds: Sequence[int], figure: Figure) -> list[Scored]:
    """What is compared of each row."""
    return [
        Scored(
            label=row.label,
            training=row.training,
            scores=stacked(results, seeds, figure),
            paper=row.paper.get(COMPARED_WITH[figure.name]),
        )
        for row, results in rows
    ]


def stacked(results: dict[int, dict], seeds: Sequence[int], figure: Figure) -> Scores:
    return figure.scale * np.stack([scores_of(results[seed], figure) for seed in seeds])


def command(name: str, configuration: Configuration, options: Sequence[str]) -> str:
    """What makes a table."""
    return " ".join(["subjectgen reproduce", "--only", name, "--steps", str(configuration.steps), *options])


def layers_section(configuration: Configuration, out: Path, document: Path) -> list[str]:
    """The plot of the weights of both LAPs over all layers, and what they say; nothing before they are learned."""
    row = next((row for row in configuration.rows if row.training == configuration.plotted), None)
    found = [read_result(out, row, seed) for seed in configuration.seeds] if row else []
    seeds = [result["layer_weights"] for result in found if result is not None]
    if not seeds:
        return []
    weights = {kind: [each[kind] for each in seeds] for kind in seeds[0]}
    picture = document.with_name(f"{document.stem}-layers.svg")
    plot_layers(weights, picture)
    head = "## Which layers text and image tokens use"
    return [head, f"![weights of both LAPs by layer]({picture.name})", about_layers(weights)]
