"""Pose difference: by how many degrees the subject is turned against its reference. Larger is less copying.

The angles are those of Orient Anything (arXiv 2412.18605), as in the paper's copy-paste table: a DINOv2 with a small
head that gives 360 logits for the azimuth, 180 for the polar angle, more for the rotation in the plane, and two that
tell whether the thing has a front at all. transformers has the DINOv2, and the head is four layers, so no package is
needed. Its weights were published as a pickle only, which is not read here: who trusts it converts it to safetensors.
What the paper does beyond that is unpublished, and this is ours: whole pictures are compared, nothing is cut out of its
ground, and the likeliest degree is taken. The estimator was made for pictures of one thing; of several subjects only
the mean over their references is left, which says little.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from subjectgen.checkpoints import CONFIG, SAFETENSORS, Checkpoint, check_complete, folder_of, version_of
from subjectgen.evaluate.metrics.metric import Pictures, check_cases, mean, seen_with_references
from subjectgen.hub import loading
from subjectgen.likeness import SIDE, dino_images
from subjectgen.weights import WeightsError

REPO, COMMIT = "Viglong/Orient-Anything", "ecfa089828d9fab521d47133bedbdbfdef151cd4"
PICKLE = "ronormsigma1/dino_weight.pt"
CONVERSION = """'{folder}' has no {safetensors}: expected the weights of Orient Anything. It was published as a pickle \
only, which subjectgen never reads: if you trust it, convert it by two commands:
hf download {repo} {pickle} --revision {commit} --local-dir '{folder}'
python -c "import torch, safetensors.torch as s; \
s.save_file(torch.load('{folder}/{pickle}', map_location='cpu', weights_only=True), '{folder}/{safetensors}')"
"""
DINOV2_LARGE = Checkpoint(repo="facebook/dinov2-large", revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c")
AZIMUTHS, POLARS = 360, 180  # logits, one a degree; polar from -90
BACKBONE, HEAD = "dinov2.", "down_sampler."  # prefixes of the published weights


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the thing in a picture is turned, in degrees, and how sure it is that it has a front, 0..1."""

    azimuth: float
    polar: float
    confidence: float


class OrientationNet(nn.Module):
    """The estimator, whatever the width of its DINOv2 and the number of its logits."""

    def __init__(self, dinov2: Dinov2Model, head: nn.Module):
        super().__init__()
        self.dinov2, self.head = dinov2, head

    @classmethod
    def from_pretrained(cls, folder: Path, backbone: Checkpoint) -> "OrientationNet":
        """folder: all weights, by their published names. backbone: its configuration. Raises WeightsError."""
        weights = converted(folder)
        dinov2, parts = dinov2_of(folder, backbone, under(BACKBONE, weights)), under(HEAD, weights)
        with loading(str(folder)):
            head = head_of(dinov2.config.hidden_size, len(parts["net2.0.bias"]))
            head.load_state_dict(parts)
        return cls(dinov2, head.eval())

    def forward(self, pixels: Float[Tensor, "n 3 side side"]) -> list[Pose]:
        """Poses of things, one a picture."""
        return [pose_of(row) for row in self.head(self.dinov2(pixels).last_hidden_state[:, 0]).cpu()]


class PoseDifference:
    """Degrees between the subject in a picture and in its reference: azimuth 0..180, polar 0..180.

    `pose_confidence` is the lesser of the two confidences that the thing has a front: of a ball or a can, azimuth means
    nothing. With several references, the mean of each.
    """

    names: tuple[str, ...] = ("azimuth_difference", "polar_difference", "pose_confidence")

    def __init__(self, net: OrientationNet, checkpoint: str):
        """checkpoint: what to call it."""
        self._net, self._images = net, dino_images(SIDE)
        self.checkpoints = (checkpoint,)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, device: torch.device | str = "cpu", backbone: Checkpoint = DINOV2_LARGE
    ) -> "PoseDifference":
        """folder: of Orient Anything's weights, converted to safetensors. Raises WeightsError, which says how."""
        net = OrientationNet.from_pretrained(Path(folder), backbone).to(device)
        return cls(net, version_of(Checkpoint(repo=str(folder))))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture; prompts are not looked at."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._poses)
        return [mean_differences(picture, own) for picture, own in seen]

    def _poses(self, images: Pictures) -> list[Pose]:
        seen = self._images(list(images), return_tensors="pt")["pixel_values"]
        return self._net(seen.to(self._net.dinov2.device))


def converted(folder: Path) -> dict[str, Tensor]:
    """The weights that lie there. Raises WeightsError that says how to make them."""
    if not (folder / SAFETENSORS).is_file():
        raise WeightsError(
            CONVERSION.format(folder=folder, safetensors=SAFETENSORS, repo=REPO, pickle=PICKLE, commit=COMMIT)
        )
    with loading(str(folder)):
        return load_file(folder / SAFETENSORS)


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}


def dinov2_of(folder: Path, backbone: Checkpoint, weights: Mapping[str, Tensor]) -> Dinov2Model:
    """What the configuration of `backbone` describes, with weights that were read from `folder`, float32."""
    described = folder_of(backbone, [CONFIG])
    with loading(str(folder)):
        config = Dinov2Config.from_pretrained(described)
        loaded = Dinov2Model.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True
        )
    dinov2, report = cast(tuple[Dinov2Model, dict[str, Any]], loaded)  # by output_loading_info
    check_complete(report, Dinov2Model, Checkpoint(repo=str(folder)))
    return dinov2.eval()


def head_of(width: int, num_logits: int) -> nn.Module:
    """The published head, with the names of its weights."""
    first = nn.Sequential(nn.Linear(width, num_logits), nn.BatchNorm1d(num_logits), nn.ReLU())
    second = nn.Sequential(nn.Linear(num_logits, num_logits), nn.BatchNorm1d(num_logits))
    return nn.Sequential(OrderedDict(net1=first, net2=second))


def pose_of(logits: Float[Tensor, " logits"]) -> Pose:
    """The likeliest angles."""
    azimuth, polar = logits[:AZIMUTHS], logits[AZIMUTHS : AZIMUTHS + POLARS]
    confidence = logits[-2:].softmax(0)[0]
    return Pose(azimuth=float(azimuth.argmax()), polar=float(polar.argmax()) - 90, confidence=float(confidence))


def mean_differences(picture: Pose, references: Sequence[Pose]) -> dict[str, float]:
    """The scores of a picture."""
    return {
        "azimuth_difference": mean(turn(picture.azimuth, each.azimuth) for each in references),
        "polar_difference": mean(abs(picture.polar - each.polar) for each in references),
        "pose_confidence": mean(min(picture.confidence, each.confidence) for each in references),
    }


def turn(first: float, second: float) -> float:
    """Degrees between two directions, the short way round."""
    apart = abs(first - second) % 360
    return min(apart, 360 - apart)
