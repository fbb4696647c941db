"""What the suite runs: a provider's forward pass, training step, or step with an encoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from alternatives import PROVIDERS, Case
from torch import Tensor, nn

from grainrank.bench.losses import SCALE, Loss
from grainrank.bench.measure import COMPILED, PRODUCTS, Products, gradients
from grainrank.bench.memory import give_back_freed, limit_memory, peak_of, peak_on_gpu
from grainrank.bench.verify import on_device, scale_of
from grainrank.testing import Inputs, Shape, make_inputs

FORWARD, STEP, MEMORY, ENCODER = "forward", "step", "memory", "encoder"
KINDS = (FORWARD, STEP, MEMORY, ENCODER)
_SMALL = {STEP: 512, ENCODER: 16}  # rows of the run that loads libraries before the measured one
TOKENS, VOCABULARY, LAYERS = 16, 1000, 2  # of the encoder and its texts


def inputs_of(case: Case, shape: Shape) -> Inputs:
    return on_device(make_inputs(shape, case.setting.dtype), case.setting)


def run_of(kind: str, name: str, case: Case, inputs: Inputs) -> Callable[[], object]:
    """One forward pass or one training step's work for the loss."""
    if name == PRODUCTS:
        products = Products(inputs.queries.detach(), inputs.candidates.detach())
        return products.forward if kind == FORWARD else products
    loss = PROVIDERS[name].make(case)
    scale = scale_of(case.setting, SCALE)
    if kind == FORWARD:
        return torch.no_grad()(partial(loss, inputs, scale))
    return partial(gradients, loss, inputs, scale)


def peak_of_step(name: str, case: Case, shape: Shape, limit: int | None, kind: str = STEP) -> int:
    """Bytes over the inputs; on a CPU in a process that does nothing else.

    What the provider asks for beyond `limit` bytes is refused.
    """

    def made(rows: Shape) -> Callable[[], object]:
        if kind == ENCODER:
            return EncoderStep(name, case, rows)
        inputs = inputs_of(case, rows)
        return lambda: run_of(STEP, name, case, inputs)()

    small = min(shape.N, _SMALL[kind])
    made(shape._replace(N=small, M=small))()
    run = made(shape)
    gpu = case.setting.device.type == "cuda"
    if limit is not None and not gpu:
        limit_memory(limit)
    if name == COMPILED:
        run()  # compiles for the shape
    if gpu:
        return peak_on_gpu(run)
    give_back_freed()
    return peak_of(run)


class Encoder(nn.Module):
    """A small transformer with random weights: means of its last states."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        self.bert = BertModel(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=dim,
                num_hidden_layers=LAYERS,
                num_attention_heads=max(1, dim // 64),
                intermediate_size=4 * dim,
                max_position_embeddings=TOKENS,
            ),
            add_pooling_layer=False,
        )

    def forward(self, texts: Tensor) -> Tensor:
        mean: Tensor = self.bert(input_ids=texts).last_hidden_state.mean(dim=1)
        return mean


class Seconds(NamedTuple):
    """Of a training step."""

    step: float
    loss: float  #: of it, for the loss and the gradients of the embeddings


class EncoderStep:
    """A training step of an encoder with a provider's loss: both towers, the loss, AdamW.

    The loss is computed on detached embeddings, and their gradients go on into the encoder: the
    same numbers, and the time of the loss can be told from the encoder's.
    """

    def __init__(self, name: str, case: Case, shape: Shape) -> None:
        device = case.setting.device
        self.encoder = Encoder(shape.D).to(device)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(VOCABULARY, (2, shape.N, TOKENS), generator=generator)
        self.texts = texts.to(device)
        self.keys = tuple(x.to(device) for x in make_inputs(shape._replace(D=1))[2:])
        self.dtype, self.device = case.setting.dtype, device
        self.scale = scale_of(case.setting, SCALE)
        self.loss: Loss = PROVIDERS[name].make(case)

    def __call__(self) -> Seconds:
        start = self._clock()
        embeddings = [self.encoder(texts) for texts in self.texts]
        q, c = (x.detach().to(self.dtype).requires_grad_() for x in embeddings)
        before = self._clock()
        inputs = Inputs(q, c, *self.keys)
        of_embeddings = gradients(self.loss, inputs, self.scale)
        after = self._clock()
        torch.autograd.backward(
            embeddings, [x.to(e.dtype) for x, e in zip(of_embeddings, embeddings, strict=True)]
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Seconds(self._clock() - start, after - before)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def encoder_says() -> dict[str, Any]:
    """For the result file."""
    return {"kind": "BERT, random weights", "layers": LAYERS, "tokens": TOKENS}
