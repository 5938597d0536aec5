"""Plain sentences about the order of rows and about learned weights, made from the figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from subjectgen.evaluate.cases import Figure
from subjectgen.reproduce.configuration import PAPER
from subjectgen.reproduce.measure import COMPARED_WITH
from subjectgen.reproduce.order import CHANCE, Comparison


def about_order(figure: Figure, pairs: Sequence[Comparison]) -> str:
    """How many pairs stand as in the paper, and each that does not; where the paper has no figures, each pair."""
    if all(pair.paper is None for pair in pairs):
        return f"**{capital(figure.heading)}**: {'; '.join(ours(pair, figure) for pair in pairs)}."
    known = [pair for pair in pairs if pair.paper is not None]
    apart = [pair for pair in known if pair.told_apart]
    same = [pair for pair in apart if pair.agrees]
    told = [f"{len(same)} of {counted(known, 'pair')} in its order", f"{len(apart) - len(same)} the other way round"]
    told.append(f"{len(known) - len(apart)} not told apart")
    head = f"**{capital(figure.heading)}**, against the paper's {PAPER[COMPARED_WITH[figure.name]]}: {', '.join(told)}."
    others = [contrast(pair, figure) for pair in known if not (pair.told_apart and pair.agrees)]
    return " ".join([head, *others])


def about_chance(pairs: Sequence[Comparison]) -> list[str]:
    """How many comparisons were made, and how many say something by chance alone. pairs: of all tables and figures."""
    if not pairs:
        return []
    apart = [pair for pair in pairs if pair.told_apart]
    said = [
        f"{counted(pairs, 'comparison')} of two rows by one figure {'was' if len(pairs) == 1 else 'were'} made and "
        f"{len(apart)} told apart. Did no row differ from another, {CHANCE * len(pairs):.1f} would be by chance."
    ]
    known = [pair for pair in pairs if pair.paper is not None]
    if known:
        same, others = ([pair for pair in known if pair.told_apart and pair.agrees == way] for way in (True, False))
        said.append(
            f"For {len(known)} of them the paper has an order: {len(same)} are told apart in it, {len(others)} the "
            f"other way round, {len(known) - len(same) - len(others)} not at all; by chance alone "
            f"{CHANCE / 2 * len(known):.1f} would be told apart in it and as many the other way round."
        )
    return [" ".join(said)]


def contrast(pair: Comparison, figure: Figure) -> str:
    """What the paper says of two rows, and what was found here."""
    leader, other = (pair.first, pair.second) if (pair.paper or 0) > 0 else (pair.second, pair.first)
    return f"In the paper *{leader}* leads *{other}* by {abs(pair.paper or 0):.4f}; here {ours(pair, figure)}."


def ours(pair: Comparison, figure: Figure) -> str:
    """What was found of two rows."""
    leader, other = (pair.first, pair.second) if pair.lead > 0 else (pair.second, pair.first)
    unit = "points" if figure.unit == "%" else figure.unit
    digits = 1 if figure.unit == "%" else 2
    lead = f"{abs(pair.lead):.{digits}f} ± {pair.margin:.{digits}f} {unit}"
    if pair.told_apart:
        return f"*{leader}* leads *{other}* by {lead}"
    gap = f"*{leader}* ahead by {lead}" if pair.lead else "equal"
    return f"*{pair.first}* and *{pair.second}* are not told apart ({gap})"


def about_layers(weights: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Of each kind of token the layer that weighs most, and how many weigh less than nothing. kind -> seed -> layer."""
    said = []
    for kind, seeds in weights.items():
        means = np.mean(seeds, axis=0)
        most, negative = int(np.abs(means).argmax()), int((means < 0).sum())
        said.append(
            f"{capital(kind)} tokens: hidden state {most} weighs most ({means[most]:+.3f}), {negative} of {len(means)} "
            "are negative."
        )
    return " ".join([*said, "Means over seeds of the weights that follow the layerwise blocks; they begin as equal."])


def counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
