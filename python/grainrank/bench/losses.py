"""The losses that are measured: grainrank's, and as one writes them in PyTorch, matrix and all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from .. import clip_loss, info_nce_loss, multi_level_ranking_loss, siglip_loss
from ..losses.multi_level import COARSE_WEIGHT
from ..testing import Inputs

SCALE, BIAS = 1 / 0.07, -10.0
_SMALLEST = -1e30

Loss = Callable[[Inputs, Tensor], Tensor]  # of a batch and the 0-d scale of the logits


def ours(loss: str, backend: Any, **options: Any) -> Loss:
    """grainrank's on a backend; `options` of the loss, such as `product`."""
    return partial(_OURS[loss], {"backend": backend, **options})


def dense(loss: str) -> Loss:
    """The same loss in PyTorch alone."""
    return _DENSE[loss]


_Options = dict[str, Any]


def _our_multi_level(options: _Options, inputs: Inputs, scale: Tensor) -> Tensor:
    loss: Tensor = multi_level_ranking_loss(
        inputs.queries, inputs.candidates, inputs.levels, logit_scale=scale, **options
    )
    return loss


def _our_info_nce(options: _Options, inputs: Inputs, scale: Tensor) -> Tensor:
    return info_nce_loss(inputs.queries, inputs.candidates, logit_scale=scale, **options)


def _our_clip(options: _Options, inputs: Inputs, scale: Tensor) -> Tensor:
    return clip_loss(inputs.queries, inputs.candidates, logit_scale=scale, **options)


def _our_siglip(options: _Options, inputs: Inputs, scale: Tensor) -> Tensor:
    return siglip_loss(
        inputs.queries, inputs.candidates, logit_scale=scale, logit_bias=BIAS, **options
    )


def _logits(inputs: Inputs, scale: Tensor) -> Tensor:
    """`[N, M]`; float32 behind a product in half precision, as autocast has it."""
    s = normalize(inputs.queries, dim=1) @ normalize(inputs.candidates, dim=1).T
    return s.to(scale.dtype) * scale


def shared_grains(query_keys: Tensor, candidate_keys: Tensor) -> Tensor:
    """Leading grains that a pair shares, `[N, M]`."""
    shared = query_keys.new_ones(len(query_keys), len(candidate_keys), dtype=torch.bool)
    # Of int8 torch.compile makes code that crashes on a CPU (torch 2.13).
    level = torch.zeros_like(shared, dtype=torch.int32)
    for q, c in zip(query_keys.unbind(dim=1), candidate_keys.unbind(dim=1), strict=True):
        shared = shared & (q[:, None] == c) & (q >= 0)[:, None]
        level = level + shared
    return level


def multi_level_rows(z: Tensor, level: Tensor, max_level: int) -> tuple[Tensor, Tensor]:
    """Loss of each row of logits `z` `[N, M]`, and whether it has a positive."""
    loss = z.new_zeros(z.shape[0])
    used = torch.zeros_like(loss, dtype=torch.bool)
    for k in range(1, max_level + 1):
        positive = level == k
        has = positive.any(dim=1)
        lse_positive = z.masked_fill(~positive, _SMALLEST).logsumexp(dim=1)
        lse_all = z.masked_fill(level > k, _SMALLEST).logsumexp(dim=1)
        weight = 1.0 if k == max_level else COARSE_WEIGHT
        loss = loss + weight * torch.where(has, lse_all - lse_positive, 0.0)
        used |= has
    return loss, used


def _dense_multi_level(inputs: Inputs, scale: Tensor) -> Tensor:
    z = _logits(inputs, scale)
    level = shared_grains(inputs.query_keys, inputs.candidate_keys)
    loss, used = multi_level_rows(z, level, inputs.query_keys.shape[1])
    return loss.sum() / used.sum()


def _dense_info_nce(inputs: Inputs, scale: Tensor) -> Tensor:
    z = _logits(inputs, scale)
    return cross_entropy(z, torch.arange(len(z), device=z.device))


def _dense_clip(inputs: Inputs, scale: Tensor) -> Tensor:
    """As open_clip writes it; candidates from row N on have no query."""
    z = _logits(inputs, scale)
    labels = torch.arange(len(z), device=z.device)
    there, back = (cross_entropy(x[: len(z)], labels) for x in (z, z.T))
    return (there + back) / 2


def _dense_siglip(inputs: Inputs, scale: Tensor) -> Tensor:
    z = _logits(inputs, scale) + BIAS
    labels = 2 * torch.eye(*z.shape, dtype=z.dtype, device=z.device) - 1
    return -logsigmoid(labels * z).sum() / z.shape[0]


_OURS = {
    "multi_level": _our_multi_level,
    "info_nce": _our_info_nce,
    "clip": _our_clip,
    "siglip": _our_siglip,
}
_DENSE = {
    "multi_level": _dense_multi_level,
    "info_nce": _dense_info_nce,
    "clip": _dense_clip,
    "siglip": _dense_siglip,
}
LOSSES = tuple(_OURS)
