"""After the MLLM was trained on: the aggregator learns to say from its new hidden states what it said from the old."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from subjectgen.data.batches import Batch, batch_of
from subjectgen.data.render import Renderer
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.train.mini_mllm import trained
from subjectgen.train.subject import SubjectPhase, hidden_states

Said = tuple[Float[Tensor, "tokens width"], Float[Tensor, "b pooled"]]


class AlignPhase(SubjectPhase):
    """Regression of semantic tokens and pooled vectors, so that a DiT understands an MLLM that it has never met.

    Cheap: no DiT runs. Stage 2 goes on from here, or the result is used as it is.
    """

    def __init__(self, renderer: Renderer, run: Path, start: Path, *, batch_size: int = 16, seed: int = 0):
        """run: holds the new MLLM; start: a pipeline's folder, whose MLLM and aggregator are the teachers."""
        self.folder = start
        super().__init__(renderer, run, "align", batch_size=batch_size, seed=seed)
        self.transformer.requires_grad_(False)
        processor, mllm = trained(start)
        self.teacher = InternVLReader(mllm.to(renderer.device), processor)  # type: ignore[arg-type]
        self.said = aggregator_of(start).to(renderer.device)  # type: ignore[arg-type]
        self.check()

    def check(self) -> None:
        """Raises ValueError if the two MLLMs do not cut text into the same tokens."""
        mine, teachers = (each.processor.tokenizer.get_vocab() for each in (self.reader, self.teacher))
        if mine != teachers:
            raise ValueError(
                f"the tokenizer of the trained MLLM is not that of {self.folder}: expected the same tokens. Train the "
                f"MLLM on from there (--phase sight --init-from {self.folder}), or --phase stage1 in place of align."
            )

    def start(self, run: Path) -> tuple[DualLayerAggregator, FluxTransformer2DModel]:
        """Those of the pipeline."""
        painter = FluxTransformer2DModel.from_pretrained(
            self.folder / "transformer", torch_dtype=torch.float32, local_files_only=True
        )
        return aggregator_of(self.folder), painter

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Squared errors of what reaches the DiT, in units of the teacher's own."""
        batch = batch_of(self.renderer, self.seed, step, self.batch_size)
        with torch.autocast(self.renderer.device.type, torch.bfloat16):
            with torch.no_grad():
                taught = say(self.teacher, self.said, batch)
            said = say(self.reader, self.aggregator, batch)
        tokens, pooled = (relative_error(*pair) for pair in zip(said, taught, strict=True))
        return tokens + pooled, {"tokens": tokens.item(), "pooled": pooled.item()}


def aggregator_of(folder: Path) -> DualLayerAggregator:
    return DualLayerAggregator.from_pretrained(folder / "aggregator", torch_dtype=torch.float32, local_files_only=True)


def say(reader: InternVLReader, aggregator: DualLayerAggregator, batch: Batch) -> Said:
    """All semantic tokens that count, one prompt after the other, and the pooled vectors."""
    states, is_image, mask = hidden_states(reader, batch)
    tokens, pooled = aggregator(states, is_image, mask)
    return tokens[mask].float(), pooled.float()


def relative_error(said: Float[Tensor, "n width"], taught: Float[Tensor, "n width"]) -> Tensor:
    """0 if equal, 1 for saying the mean of what is taught, always."""
    return F.mse_loss(said, taught) / (taught - taught.mean(0)).square().mean()
