"""From the hidden states of all MLLM layers to the semantic tokens of a DiT: DLA and the baselines of Table 6."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

MODES = ("last", "last_vit", "shared", "dual")

MLP_RATIO = 4


class RMSNormPerLayer(nn.Module):
    """RMSNorm with a separate scale per layer: the norms of hidden states grow by an order of magnitude with depth."""

    def __init__(self, num_layers: int, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(num_layers, width))

    def forward(self, x: Float[Tensor, "*n layers width"]) -> Float[Tensor, "*n layers width"]:
        x = x.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * self.scale.float()).to(self.scale.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP, without positions."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}: choose a divisor of the width")
        self.num_heads = num_heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(
        self, x: Float[Tensor, "b n width"], mask: Bool[Tensor, "b 1 1 n"] | None = None
    ) -> Float[Tensor, "b n width"]:
        """mask: True where a token may be attended to; None = everywhere."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (s h d) -> s b h n d", s=3, h=self.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class LayerwiseAttentionPooling(nn.Module):
    """LAP: attention along the layer axis, every token by itself, then one learned weight per layer (UniFusion).

    The weights start as a mean and may become negative: a softmax over layers could not express what is learned.
    """

    def __init__(self, num_layers: int, width: int, num_heads: int, num_blocks: int = 2):
        super().__init__()
        self.norm = RMSNormPerLayer(num_layers, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(num_blocks))
        self.pool = nn.Linear(num_layers, 1, bias=False)
        nn.init.constant_(self.pool.weight, 1 / num_layers)

    def forward(self, states: Float[Tensor, "n layers width"]) -> Float[Tensor, "n width"]:
        x = self.norm(states)
        for block in self.blocks:
            x = block(x)
        return self.pool(rearrange(x, "n layers width -> n width layers")).squeeze(-1)


class DualLayerAggregator(ModelMixin, ConfigMixin):
    """DLA: hidden states of the MLLM -> tokens for the DiT's text stream and their pooled vector.

    `mode` says how layers become one vector per token (Table 6 of the paper): "last" takes the last layer,
    "last_vit" blends it at image tokens with layer 0 (there the projected output of the ViT), "shared" pools all
    layers with one LAP, "dual" with one LAP for text tokens and another for image tokens. Layers are those of
    `range(first_layer, last_layer + 1, layer_stride)`; `last_layer=None` is the MLLM's last.
    `null_pooled` is the pooled vector where no semantic tokens condition a picture.
    """

    _no_split_modules = ["TransformerBlock"]  # noqa: RUF012  (diffusers reads it from the class)

    @register_to_config
    def __init__(
        self,
        num_layers: int,
        mllm_width: int,
        width: int,
        pooled_width: int,
        mode: str = "dual",
        first_layer: int = 0,
        last_layer: int | None = None,
        layer_stride: int = 1,
        num_heads: int = 4,
        num_blocks: int = 2,
        num_refiner_blocks: int = 2,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        self.mode = mode
        self.mllm_shape = (num_layers, mllm_width)
        self.layers = _selected_layers(num_layers, first_layer, last_layer, layer_stride)
        if mode in ("last", "last_vit"):
            self.norm = RMSNormPerLayer(1 if mode == "last" else 2, mllm_width)
        if mode == "last_vit":
            self.blend = nn.Parameter(torch.tensor(0.5))
        if mode in ("shared", "dual"):
            self.text_pooling = LayerwiseAttentionPooling(len(self.layers), mllm_width, num_heads, num_blocks)
        if mode == "dual":
            self.image_pooling = LayerwiseAttentionPooling(len(self.layers), mllm_width, num_heads, num_blocks)
        self.project = nn.Sequential(
            nn.RMSNorm(mllm_width, eps=1e-6),
            nn.Linear(mllm_width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        self.token_type = nn.Embedding(2, width)  # 0 = text, 1 = image
        nn.init.normal_(self.token_type.weight, std=0.02)
        self.refiner = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(num_refiner_blocks))
        self.final_norm = nn.RMSNorm(width, eps=1e-6)
        self.pooled = nn.Linear(width, pooled_width)
        self.null_pooled = nn.Parameter(torch.zeros(pooled_width))

    def forward(
        self,
        states: Float[Tensor, "b layers tokens mllm_width"],
        is_image: Bool[Tensor, "b tokens"],
        mask: Bool[Tensor, "b tokens"],
    ) -> tuple[Float[Tensor, "b tokens width"], Float[Tensor, "b pooled_width"]]:
        """mask: True = a real token, False = padding, which has no influence and comes out as zeros.

        A sample without any token gets `null_pooled`.
        """
        self._check(states)
        x = self.project(self.pool_layers(states, is_image, mask)) + self.token_type(is_image.long())
        key_mask = rearrange(mask, "b n -> b 1 1 n")
        for block in self.refiner:
            x = block(x, key_mask)
        x = torch.where(mask[..., None], self.final_norm(x), 0)
        count = mask.sum(1, keepdim=True)
        pooled = self.pooled(x.sum(1) / count.clamp(min=1))
        return x, torch.where(count > 0, pooled, self.null_pooled)

    @apply_forward_hook
    def pooled_of_nothing(self) -> Float[Tensor, " pooled"]:
        """`null_pooled`, fetched as for a forward: offloaded, it may have no values outside of one."""
        return self.null_pooled

    def pool_layers(
        self,
        states: Float[Tensor, "b layers tokens mllm_width"],
        is_image: Bool[Tensor, "b tokens"],
        mask: Bool[Tensor, "b tokens"],
    ) -> Float[Tensor, "b tokens mllm_width"]:
        """One vector per token, as `mode` says; zeros at padding where a LAP pools."""
        if self.mode == "last":
            return self.norm(states[:, self.layers[-1], :, None]).squeeze(-2)
        if self.mode == "last_vit":
            last, vit = self.norm(torch.stack((states[:, self.layers[-1]], states[:, 0]), dim=-2)).unbind(-2)
            return torch.where(is_image[..., None], torch.lerp(last, vit, self.blend.to(last)), last)
        selected = states[:, self.layers.start : self.layers.stop : self.layers.step]
        layers = rearrange(selected, "b layers n w -> b n layers w")
        if self.mode == "shared":
            return _pool_where(mask, layers, self.text_pooling)
        text = _pool_where(mask & ~is_image, layers, self.text_pooling)
        return text + _pool_where(mask & is_image, layers, self.image_pooling)

    def _check(self, states: Tensor) -> None:
        given = (states.shape[1], states.shape[3])
        if given != self.mllm_shape:
            raise ValueError(
                f"hidden states have {given[0]} layers of width {given[1]}, this aggregator reads {self.mllm_shape[0]} "
                f"layers of width {self.mllm_shape[1]}: use the MLLM it was trained with"
            )


def _pool_where(
    chosen: Bool[Tensor, "b tokens"],
    layers: Float[Tensor, "b tokens layers mllm_width"],
    pooling: LayerwiseAttentionPooling,
) -> Float[Tensor, "b tokens mllm_width"]:
    """Pools the chosen tokens only, zeros elsewhere: nothing is paid for padding or for the other kind of token."""
    pooled = pooling(layers[chosen])
    index = repeat(chosen, "b n -> b n w", w=pooled.shape[-1])
    return torch.zeros_like(layers[:, :, 0], dtype=pooled.dtype).masked_scatter(index, pooled)


def _selected_layers(num_layers: int, first: int, last: int | None, stride: int) -> range:
    last = num_layers - 1 if last is None else last
    if not (0 <= first <= last < num_layers and stride >= 1):
        raise ValueError(
            f"first_layer={first}, last_layer={last}, layer_stride={stride}: expected "
            f"0 <= first_layer <= last_layer <= {num_layers - 1} and a stride of at least 1"
        )
    return range(first, last + 1, stride)
