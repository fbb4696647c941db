"""The adapter for open_clip: its own model and losses, in a process of its own, and the levels."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grainrank
from grainrank import GrainKeys
from grainrank.integrations.open_clip import ClipLoss, SigLipLoss

GRAINS = torch.tensor([(i // 4, i // 2, i) for i in range(8)])


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 8, 16, generator=generator, dtype=torch.float64)
    images, texts = torch.nn.functional.normalize(both, dim=-1)
    return images, texts


@pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("ftfy") is None,
    reason="needs pip install --no-deps open_clip_torch ftfy",
)
def test_fifty_steps_of_a_model_and_the_gradients_of_its_own_losses():
    program = Path(__file__).with_name("open_clip_training.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["clip"] < 1e-5
    assert found["siglip"] < 1e-5
    for name in ("graded", "sigmoid"):
        first, last = found[name]
        assert last < 0.6 * first, (name, first, last)


def test_grains_make_it_the_multi_level_loss():
    images, texts = features()
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    found = ClipLoss(level_weights=[0.2, 0.2, 1.0])(images, texts, scale, grains=GRAINS)
    expected = grainrank.multi_level_ranking_loss(
        images,
        texts,
        GrainKeys(GRAINS, GRAINS),
        level_weights=[0.2, 0.2, 1.0],
        logit_scale=scale,
        direction="symmetric",
    )
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, scale)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, scale)[0])


def test_another_loss_and_the_sigmoid_one():
    images, texts = features()
    found = ClipLoss(grainrank.CoSENTLoss())(images, texts, 20.0, grains=GRAINS)
    levels = GrainKeys(GRAINS, GRAINS)
    expected = grainrank.cosent_loss(
        images, texts, levels, logit_scale=20.0, direction="symmetric", normalize=False
    )
    torch.testing.assert_close(found, expected)
    weights = [1.0, 0.5, 0.5, 1.0]
    bias = torch.tensor(-10.0, dtype=torch.float64)
    found = SigLipLoss(level_weights=weights)(images, texts, 10.0, bias, grains=GRAINS)
    expected = grainrank.siglip_loss(
        images, texts, levels, logit_scale=10.0, logit_bias=bias, level_weights=weights
    )
    torch.testing.assert_close(found, expected)


def test_errors_name_the_mend():
    images, texts = features()
    with pytest.raises(ValueError, match="init_logit_bias"):
        SigLipLoss()(images, texts, 10.0)
    with pytest.raises(TypeError, match="give them to the loss"):
        ClipLoss(grainrank.CoSENTLoss(), level_weights=[1.0])
