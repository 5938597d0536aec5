"""What a call of a pipeline gives."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor

from subjectgen.binding import Binding
from subjectgen.generate.to_image import Pictures
from subjectgen.reasoning.judges import Score
from subjectgen.reasoning.plan import Plan
from subjectgen.reasoning.reflect import Round


@dataclass
class SubjectPipelineOutput(BaseOutput):
    """The pictures, how their prompts were understood, and what they were painted from.

    images: PIL images, an array [b, h, w, 3] or tensor [b, 3, h, w] in 0..1, or latents [b, c, h, w].
    bindings: for each prompt, or prompt of a plan, which of its phrases stand for which reference.
    plans: one per prompt; None if none was planned.
    scores: of each picture, those of all its candidates, in the order of their noise; None if none was judged.
    kept: of each picture, which of its candidates it is, counted from 0; None (the first) if none was judged.
    noise: [b, c, h, w] that each picture was first painted from; `latents=noise` paints the same pictures again alone,
        as they were before any reflection: its rounds draw further noise of the generators.
    rounds: of reflection, the first painting among them; None without it.
    """

    images: Pictures
    bindings: tuple[tuple[Binding, ...], ...] = ()
    plans: list[Plan] | None = None
    scores: list[tuple[Score, ...]] | None = None
    kept: list[int] | None = None
    noise: Tensor | None = None
    rounds: list[Round] | None = None
