"""Rendered triples in a folder, and the tiny pipeline that training on them starts from."""

import json

import torch
from tiny_adapter import TARGETS
from tiny_pipeline import tiny_pipeline
from tiny_subjects import cutout_folder

from subjectgen.data.batches import batch_of
from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.evaluate.sheet import picture_of
from subjectgen.lora import LoraSettings, add_identity

SIZE = 64  # pixels of a target


def triples_folder(folder, number=20):
    """One to three references each, some of them of equal number."""
    renderer = Renderer(load_subjects(cutouts=cutout_folder(folder / "cutouts", seen=6, unseen=0)).split(unseen=False))
    rows = []
    for row in range(number):
        batch = batch_of(renderer, 0, 8 * (row % 5) + row // 5, 1)
        pictures = {f"{row}-{k}.png": pixels for k, pixels in enumerate(batch.references[0])}
        rows.append({"references": list(pictures), "prompt": batch.prompts[0], "target": f"{row}.png"})
        for name, pixels in {**pictures, f"{row}.png": batch.target[0]}.items():
            picture_of(pixels).save(folder / name)
    write_metadata(folder, rows)
    return folder


def write_metadata(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def untrained_pipeline(rank=4, dtype=torch.float32, **settings):
    """A fresh one, for a stage lets go of the MLLM's weights."""
    pipe = tiny_pipeline(**{"conditions": "joint", "guidance_scale": 2.0, "num_inference_steps": 3, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        add_identity(pipe.transformer, LoraSettings(rank=rank, alpha=rank, targets=TARGETS))
    return pipe.to(dtype)


def bfloat16_pipeline():
    return untrained_pipeline(dtype=torch.bfloat16)
