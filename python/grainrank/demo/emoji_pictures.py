"""Pictures of emoji for a vision tower: on a background, and changed at random for training."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..data import emoji

TRAINING_STYLES = ("noto", "twemoji")
TEST_STYLE = "fluent"
ROTATION, ZOOM, SHIFT, COLOUR = math.radians(15), 0.2, 0.12, 0.25  # the widest changes
_SPREAD = 0.3  # of the pixels, about; the towers get (pixel - 0.5) / spread


def load_pictures(style: str) -> Tensor:
    """float32 `[M, 4, 32, 32]`: red, green and blue, multiplied by alpha, and alpha; 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(emoji.pictures(style)))  # [M, 32, 32, 4]
    pictures = pixels.permute(0, 3, 1, 2).float() / 255
    return torch.cat([pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]], dim=1)


def on_white(pictures: Tensor) -> Tensor:
    """What a trained model sees: `[n, 3, 32, 32]` of `[n, 4, 32, 32]`."""
    return (pictures[:, :3] + (1 - pictures[:, 3:]) - 0.5) / _SPREAD


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turned, zoomed and shifted a little, half of them on white and half on a random colour, in
    slightly other colours: `[n, 3, 32, 32]` of `[n, 4, 32, 32]`.
    """
    count = len(pictures)

    def within(limit: float, *shape: int) -> Tensor:
        return limit * (2 * torch.rand(count, *shape, generator=generator) - 1)

    angle, zoom, aspect = within(ROTATION), 1 + within(ZOOM), 1 + within(ZOOM / 3)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    rows = [cosine * aspect, -sine, within(SHIFT), sine * aspect, cosine, within(SHIFT)]
    affine = torch.stack(rows, dim=1).view(count, 2, 3)
    grid = torch.nn.functional.affine_grid(affine, list(pictures.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(pictures, grid, align_corners=False)

    colour = torch.rand(count, 3, 1, 1, generator=generator)
    white = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    pixels = moved[:, :3] + (1 - moved[:, 3:]) * colour.masked_fill(white, 1.0)
    mixing = torch.diag_embed(1 + within(COLOUR, 3)) + within(COLOUR / 2, 3, 3)  # [n, 3, 3]
    mixed = torch.einsum("nij,njhw->nihw", mixing, pixels - 0.5)
    return (mixed + within(COLOUR / 2, 1, 1, 1)) / _SPREAD
