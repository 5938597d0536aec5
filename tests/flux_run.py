"""What tests/test_train_flux.py starts twice: one of two processes that train the adapter together."""

import sys
from pathlib import Path

from tiny_triples import untrained_pipeline

from subjectgen.train import flux


class Telling(flux.FluxPhase):
    """Says how its weights are kept."""

    def export(self, folder):
        print("weights are", type(next(self.model.parameters()).data).__name__)
        super().export(folder)


if __name__ == "__main__":
    flux.FluxPhase = Telling
    flux.train(untrained_pipeline, "stage2", Path(sys.argv[1]), steps=2, batch_size=2, accumulate=1, rate=1e-2)
