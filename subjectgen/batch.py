"""What the prompts of a batch have in common is computed once: each picture, each list of references, each text."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.backbones import Denoiser, Reader
from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.guide import needs_negative
from subjectgen.generate.identity import identity_tokens
from subjectgen.models.vae import Vae, latents_from_pixels
from subjectgen.request import ResolvedRequest, Subjects
from subjectgen.types import Condition, IdentityTokens, ReferencePrefix, SemanticTokens

Reading = tuple[str, Subjects]  # a text, and the subjects it is about


def readings(resolved: ResolvedRequest) -> list[Reading]:
    """Every text that the MLLM has to read, prompts first; none twice with the same subjects."""
    texts = list(zip(resolved.prompts, resolved.subjects, strict=True))
    if needs_negative(resolved.stages, resolved.guidance):
        texts += zip(resolved.negative_prompts, resolved.subjects, strict=True)
    return list({(text, subjects.key): (text, subjects) for text, subjects in texts}.values())


def prefixes(reader: Reader, subjects: Sequence[Subjects]) -> list[ReferencePrefix]:
    """What the MLLM keeps of each list of references; equal lists are read once."""
    read: dict[tuple, ReferencePrefix] = {}
    for each in subjects:
        if each.key not in read:
            read[each.key] = _prefix(reader, each)
    return [read[each.key] for each in subjects]


def _prefix(reader: Reader, subjects: Subjects) -> ReferencePrefix:
    if isinstance(subjects, SubjectEmbeds):
        return subjects.prefix
    return reader.read_references(subjects.images, subjects.masks)


def identities(
    vae: Vae, denoiser: Denoiser, subjects: Sequence[Subjects], device: torch.device
) -> list[IdentityTokens]:
    """Identity tokens of each list of references; equal pictures are encoded once."""
    latents: dict[str, Float[Tensor, "c h w"]] = {}
    tokens: dict[tuple, IdentityTokens] = {}
    for each in subjects:
        if isinstance(each, SubjectEmbeds):
            tokens[each.key] = each.identity
        elif each.key not in tokens:
            for key, image in zip(each.key, each.images, strict=True):
                if key not in latents:
                    latents[key] = latents_from_pixels(vae, pixels_of(image).to(device))[0]
            tokens[each.key] = identity_tokens(denoiser, [latents[key] for key in each.key], each.masks)
    return [tokens[each.key] for each in subjects]


def conditions(
    resolved: ResolvedRequest,
    read: Sequence[Reading],
    semantic: Sequence[SemanticTokens],
    identity: Sequence[IdentityTokens],
) -> tuple[list[Condition], list[Condition]]:
    """Conditions of each picture with its prompt, and with its negative prompt (none where none was read)."""
    by_text = {
        (text, subjects.key): tokens if len(tokens.tokens) else None  # the empty text about nothing has no tokens
        for (text, subjects), tokens in zip(read, semantic, strict=True)
    }

    def of(texts: Sequence[str]) -> list[Condition]:
        keys = [(text, subjects.key) for text, subjects in zip(texts, resolved.subjects, strict=True)]
        each_prompt = [Condition(semantic=by_text[key], identity=i) for key, i in zip(keys, identity, strict=True)]
        return [condition for condition in each_prompt for _ in range(resolved.num_images_per_prompt)]

    negatives = resolved.negative_prompts if needs_negative(resolved.stages, resolved.guidance) else None
    return of(resolved.prompts), [] if negatives is None else of(negatives)


def pixels_of(image: Image.Image) -> Float[Tensor, "1 channels h w"]:
    """A picture as pixels -1..1."""
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> 1 c h w") / 127.5 - 1
