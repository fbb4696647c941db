"""Trains a tiny open_clip model, in a process of its own; prints what the test looks at as JSON.

torchvision, which open_clip imports for its pictures' transforms, is a build for another torch: an
empty module stands in where it is missing. The model and the loss use nothing of it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types
from typing import Any

import torch


class _Anything(type):
    """A class with every attribute."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def _stand_in(*names: str) -> None:
    for name in names:
        module = _Empty(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


if importlib.util.find_spec("torchvision") is None:
    _stand_in("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    _stand_in("torchvision.ops", "torchvision.ops.misc")

import open_clip  # noqa: E402

from grainrank.integrations.open_clip import ClipLoss, SigLipLoss  # noqa: E402

GRAINS = torch.tensor([(i // 4, i // 2, i) for i in range(8)])


def _model(bias: float | None) -> Any:
    torch.manual_seed(0)
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(16, vision, text, output_dict=True, init_logit_bias=bias)


def _batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    looks = torch.randn(8, 3, 8, 8, generator=generator)
    noise = torch.randn(8, 3, 8, 8, generator=generator.manual_seed(seed))
    texts = torch.zeros(8, 8, dtype=torch.int64)
    texts[:, :4] = torch.cat([GRAINS + torch.tensor([10, 15, 20]), torch.full((8, 1), 39)], dim=1)
    return looks + 0.3 * noise, texts


def _gradients(model: Any, loss: Any, **options: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss(**model(*_batch(0)), output_dict=True, **options)["contrastive_loss"].backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _differ(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest difference, of the largest gradient."""
    largest = max(float(x.abs().max()) for x in a)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / largest


def main() -> None:
    model, biased = _model(None), _model(-10.0)
    found: dict[str, Any] = {
        "clip": _differ(_gradients(model, open_clip.ClipLoss()), _gradients(model, ClipLoss())),
        "siglip": _differ(
            _gradients(biased, open_clip.loss.SigLipLoss()), _gradients(biased, SigLipLoss())
        ),
    }
    for name, trained, loss in (("graded", model, ClipLoss()), ("sigmoid", biased, SigLipLoss())):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-3)
        losses = []
        for step in range(50):
            out = trained(*_batch(step))
            total = loss(**out, grains=GRAINS, output_dict=True)["contrastive_loss"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        found[name] = [losses[0], losses[-1]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
