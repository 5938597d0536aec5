"""Which layers of the MLLM text and image tokens use: the learned weights of both LAPs, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from subjectgen.evaluate.plots import COLOURS, METADATA, SETTINGS
from subjectgen.files import whole_file

BAR = 0.4  # width, in layers


def plot_layers(weights: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Bars of the mean over seeds, a dot for each seed. weights: by kind of token, seed and layer."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (kind, seeds) in enumerate(weights.items()):
        values = np.array(seeds)
        places = np.arange(values.shape[1]) + (index - (len(weights) - 1) / 2) * BAR
        axes.bar(places, values.mean(0), BAR, color=COLOURS[index], label=f"{kind} tokens", gid=f"bars-{kind}")
        axes.plot(places, values.T, ".", color="black", markersize=4)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(max(len(layers) for seeds in weights.values() for layers in seeds)))
    axes.set_xlabel("hidden state (0 is the embedding)")
    axes.set_ylabel("learned weight")
    axes.legend()
    with rc_context(SETTINGS), whole_file(path) as temporary:  # type: ignore[arg-type]  (their names are rcParams)
        figure.savefig(temporary, format="svg", metadata=METADATA)
