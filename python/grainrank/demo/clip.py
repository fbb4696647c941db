"""A tiny CLIP with random weights: transformers' towers, and a few convolutions below one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..data.emoji import SIZE
from .emoji_texts import BEGIN, END, LENGTH, PAD
from .encoder import GLOBAL_RANDOM_STATE

if TYPE_CHECKING:
    from transformers import CLIPModel

WIDTH, PROJECTION, HEADS = 96, 128, 4
TEXT_LAYERS, VISION_LAYERS = 1, 2
STEM = 48  # channels of the first convolution
PATCH = 8  # pixels that a token of the vision tower stands for
_ROWS = 256  # texts or pictures that are encoded at once


class Stem(nn.Sequential):
    """Instead of one linear map of each patch: `[n, 3, 32, 32]` to `[n, WIDTH, 4, 4]`.

    Early convolutions let a small vision transformer learn from few pictures (Xiao et al., 2021).
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, STEM, 3, stride=2, padding=1),
            nn.GroupNorm(1, STEM),
            nn.GELU(),
            nn.Conv2d(STEM, 2 * STEM, 3, stride=2, padding=1),
            nn.GroupNorm(1, 2 * STEM),
            nn.GELU(),
            nn.Conv2d(2 * STEM, WIDTH, 3, stride=2, padding=1),
        )

    @property
    def weight(self) -> Tensor:
        """The tower asks it for the dtype of its pictures."""
        return cast(Tensor, self[0].weight)


def make_clip(vocabulary: int, seed: int) -> CLIPModel:
    """The same initial weights for every loss; the global random state stays as it was."""
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": HEADS,
        "hidden_act": "gelu", "projection_dim": PROJECTION,
    }  # fmt: skip
    texts = {
        "num_hidden_layers": TEXT_LAYERS, "vocab_size": vocabulary,
        "max_position_embeddings": LENGTH,
        "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END,
    }  # fmt: skip
    pictures = {"num_hidden_layers": VISION_LAYERS, "image_size": SIZE, "patch_size": PATCH}
    config = CLIPConfig(
        text_config={**shared, **texts},
        vision_config={**shared, **pictures},
        projection_dim=PROJECTION,
    )
    with GLOBAL_RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)  # attention: scaled_dot_product_attention, the default
        model.vision_model.embeddings.patch_embedding = Stem()
    return model


def embed_texts(model: CLIPModel, ids: Tensor) -> Tensor:
    """`[n, PROJECTION]` of tokens `[n, LENGTH]`; columns of nothing but `PAD` cost nothing."""
    longest = int((ids != PAD).sum(dim=1).max())
    pooled = model.text_model(input_ids=ids[:, :longest]).pooler_output
    return cast(Tensor, model.text_projection(pooled))


def embed_pictures(model: CLIPModel, pictures: Tensor) -> Tensor:
    """`[n, PROJECTION]` of `[n, 3, 32, 32]`."""
    pooled = model.vision_model(pixel_values=pictures).pooler_output
    return cast(Tensor, model.visual_projection(pooled))


def embed_all(model: CLIPModel, ids: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Both, chunk by chunk."""
    texts = [embed_texts(model, rows) for rows in ids.split(_ROWS)]
    seen = [embed_pictures(model, rows) for rows in pictures.split(_ROWS)]
    return torch.cat(texts), torch.cat(seen)
