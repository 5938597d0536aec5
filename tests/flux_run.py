"""What tests/test_train_flux.py starts twice: one of two processes that train the adapter together."""

import os
import signal
import sys
from pathlib import Path

from tiny_triples import SIZE, bfloat16_pipeline, untrained_pipeline

from subjectgen.train import flux

OUT, DATA, WORD = sys.argv[1:]


class Telling(flux.FluxPhase):
    """Says how its weights are kept, and can be stopped in its first step."""

    def loss(self, step):
        if WORD == "stop" and step < 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().loss(step)

    def export(self, folder):
        print("weights are", type(next(self.model.parameters()).data).__name__)
        super().export(folder)


if __name__ == "__main__":
    flux.FluxPhase = Telling
    if WORD == "precompute":
        flux.train(untrained_pipeline, "precompute", Path(OUT, "again"), data=DATA, size=SIZE)
    settings = {"steps": 2, "batch_size": 2, "accumulate": 1, "rate": 1e-2, "resume": WORD == "resume"}
    try:
        flux.train(untrained_pipeline if WORD == "precompute" else bfloat16_pipeline, "stage2", Path(OUT), **settings)
    except KeyboardInterrupt as stop:
        print(stop)
