"""A benchmark without a world: colours are asked for by name, and a pipeline that paints them by their names."""

from types import SimpleNamespace

import torch
from PIL import Image, ImageColor
from tiny import tiny_processor, tiny_scheduler
from torch import nn

from subjectgen.evaluate.cases import Case, Figure, Scored
from subjectgen.evaluate.dreambench_prompts import PHOTOGRAPHS
from subjectgen.pipeline import SubjectPipeline


class Colours:
    """Two prompts about each of three subjects; a picture is right if it has the colour asked for."""

    name = "colours"
    parts = {"plain": "one colour"}  # noqa: RUF012
    identity, obedience = "likeness", "right"
    figures = (Figure(name="likeness", heading="likeness", unit="%"), Figure(name="right", heading="right", unit="%"))
    eyes = "someone/eyes@1"
    square = False

    def __init__(self, ground="gray"):
        """ground: of the first subject's reference."""
        self.ground = ground
        colours = ("red", "blue", "lime", "cyan", "white", "black")
        self.cases = [
            Case(name=f"c-{i}", part="plain", subject=f"s{i // 2}", prompt=colour, seed=100 + i)
            for i, colour in enumerate(colours)
        ]
        self.looked_at = []

    def references(self, case):
        return [Image.new("RGB", (8, 8), self.ground if case.subject == "s0" else "pink")]

    def truth(self, case):
        return Image.new("RGB", (8, 8), case.prompt)

    @property
    def scorers(self):
        return {self.eyes: self.score}

    def score(self, case, pictures):
        self.looked_at += [case.name] * len(pictures)
        right = [picture.getpixel((0, 0)) == ImageColor.getrgb(case.prompt) for picture in pictures]
        return [Scored(scores={"likeness": i / 4, "right": float(each)}) for i, each in enumerate(right)]

    def measure(self, pipe):
        return {"sharpness": 12.5}

    def photographs(self):
        return []


class ColourPainter(SubjectPipeline):
    """Paints the prompt's colour, but black for any seed that is in `wrong`."""

    def __init__(self, weight=1.0, stages="free", wrong=(), **settings):
        self.net, self.wrong, self.calls = nn.Linear(1, 1), wrong, []
        nn.init.constant_(self.net.weight, weight)
        nn.init.zeros_(self.net.bias)
        self._config = {"stages": stages, "image_size": 8, "num_inference_steps": 3, "guidance_scale": 2.0, **settings}
        self.scheduler, self.processor = tiny_scheduler(), tiny_processor()
        self.vae = SimpleNamespace(config={"scaling_factor": 0.5})

    @property
    def config(self):
        return self._config

    @property
    def components(self):
        return {"net": self.net}

    @property
    def limits(self):
        return SimpleNamespace(size_multiple=4)

    @property
    def device(self):
        return torch.device("cpu")

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, references, *, stages, width, height, num_inference_steps, guidance_scale, generator):
        seeds = [each.initial_seed() for each in generator]
        asked = {"references": references, "stages": stages, "guidance_scale": guidance_scale}
        self.calls.append(SimpleNamespace(prompts=prompts, seeds=seeds, **asked))
        painted = ["black" if seed in self.wrong else prompt for prompt, seed in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=[Image.new("RGB", (width, height), colour) for colour in painted])


class Interrupted(ColourPainter):
    """Stops as by Ctrl-C after so many batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __call__(self, *given, **options):
        if len(self.calls) == self.batches:
            raise KeyboardInterrupt
        return super().__call__(*given, **options)


def photograph_folder(folder):
    """In place of DreamBench: as many of each subject, in a colour of its own; the cat's first is white."""
    for index, (subject, count) in enumerate(PHOTOGRAPHS.items()):
        (folder / subject).mkdir(parents=True)
        for number in range(count):
            colour = "white" if (subject, number) == ("cat", 0) else (index * 8, 100, 50)
            Image.new("RGB", (16, 12), colour).save(folder / subject / f"{number:02d}.jpg", quality=100)
    return folder
