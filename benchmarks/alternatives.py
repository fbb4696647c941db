"""What a user has for a training step of a loss: each provider by name, for the suite.

A provider gives a `Loss`: embeddings and the 0-d scale of the logits in, the loss out, with
gradients. Packages are imported where they are used, and one that is missing is said to be.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from torch.utils.checkpoint import checkpoint

from grainrank.bench.losses import BIAS, Loss, dense, multi_level_rows, ours, shared_grains
from grainrank.bench.measure import COMPILED, DENSE, OURS, compiled
from grainrank.bench.verify import Setting
from grainrank.testing import Inputs

MATRYOSHKA = "matryoshka"  # the multi-level loss, summed over prefixes of the embeddings
LOSSES = ("multi_level", "info_nce", "clip", "siglip", MATRYOSHKA)
SOFTMAX = ("info_nce", "clip")
PLAIN = ("multi_level", *SOFTMAX, "siglip")
CHUNK_ROWS = 1024  # of the checkpointed chunks
MINI_BATCH = 256  # sentence-transformers' mini_batch_size; the library's default is 32
_HALF = (torch.bfloat16, torch.float16)
_ANY = (torch.float32, torch.float64, *_HALF)


class Case(NamedTuple):
    """What is measured: a loss, where and in what, and grainrank's backend."""

    loss: str
    setting: Setting
    backend: str


class Provider(NamedTuple):
    """One way to compute a loss."""

    label: str  #: for people
    make: Callable[[Case], Loss]
    losses: tuple[str, ...] = LOSSES
    package: str | None = None  #: to import
    install: str = ""  #: for pip
    dtypes: tuple[torch.dtype, ...] = _ANY
    gpu: bool = False  #: runs on a GPU only
    float64: bool = True  #: computes in float64 what it is given in float64
    learns_scale: bool = True  #: has a gradient for the scale


def missing(provider: Provider, case: Case) -> str | None:
    """Why a provider of the loss cannot run the case; None: it can."""
    if provider.package is not None and importlib.util.find_spec(provider.package) is None:
        return f"not installed: pip install {provider.install}"
    if provider is PROVIDERS["linear_cross_entropy"] and not _has_linear_cross_entropy():
        return f"not in torch {torch.__version__}: pip install 'torch>=2.13'"
    if case.setting.dtype not in provider.dtypes:
        names = " and ".join(str(x).removeprefix("torch.") for x in provider.dtypes)
        return f"takes {names} only"
    if provider.gpu and case.setting.device.type != "cuda":
        return "needs a GPU"
    return None


# grainrank, and plain PyTorch.


def prefixes(inputs: Inputs) -> tuple[int, ...]:
    """The Matryoshka dimensions: an eighth, a quarter, half and all of the features."""
    d = inputs.queries.shape[1]
    return tuple(max(1, d // part) for part in (8, 4, 2, 1))


def _grainrank(case: Case, **options: Any) -> Loss:
    if case.loss != MATRYOSHKA:
        return ours(case.loss, case.backend, **options)

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        dims = {"matryoshka_dims": prefixes(inputs)}
        return ours("multi_level", case.backend, **dims, **options)(inputs, scale)

    return loss


def _variant(label: str, losses: tuple[str, ...] = LOSSES, **changed: Any) -> Provider:
    """grainrank on a GPU, another way."""
    backend = changed.pop("backend", "triton")
    return Provider(
        label,
        lambda case: _grainrank(case._replace(backend=backend), **changed),
        losses,
        package="grainrank._cuda" if backend == "cuda" else None,
        install="grainrank, where nvcc is on the PATH",
        gpu=True,
        float64=False,
    )


def _widened(case: Case) -> Loss:
    """grainrank on embeddings that a user turned into float32."""
    wide = _grainrank(case._replace(setting=case.setting._replace(dtype=torch.float32)))

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        q, c = (x.float() for x in inputs[:2])
        return wide(inputs._replace(queries=q, candidates=c), scale)

    return loss


def by_prefix(loss: Loss, inputs: Inputs, scale: Tensor) -> Tensor:
    """One call for each prefix, as MatryoshkaLoss of sentence-transformers does it."""
    losses = [
        loss(
            inputs._replace(queries=inputs.queries[:, :d], candidates=inputs.candidates[:, :d]),
            scale,
        )
        for d in prefixes(inputs)
    ]
    return torch.stack(losses).sum()


@functools.cache
def _dense(name: str) -> Loss:
    if name == MATRYOSHKA:
        return functools.partial(by_prefix, dense("multi_level"))
    return dense(name)


def chunked(case: Case) -> Loss:
    """Row chunks in PyTorch, each computed again in the backward pass; no matrix is kept."""
    rows = CHUNK_ROWS
    of_rows = {
        "multi_level": _chunk_of_multi_level,
        "info_nce": _chunk_of_info_nce,
        "clip": _chunk_of_info_nce,
        "siglip": _chunk_of_siglip,
    }[case.loss]

    def one_way(inputs: Inputs, scale: Tensor) -> Tensor:
        q, c = (normalize(x, dim=1) for x in inputs[:2])
        total, used = scale.new_zeros(()), scale.new_zeros(())
        for start in range(0, len(q), rows):
            part = slice(start, start + rows)
            chunk = Inputs(q[part], c, inputs.query_keys[part], inputs.candidate_keys)
            found = checkpoint(of_rows, *chunk, scale, start, use_reentrant=False)
            total, used = total + found[0], used + found[1]
        return total / used

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        if case.loss != "clip":
            return one_way(inputs, scale)
        return (one_way(inputs, scale) + one_way(turned(inputs), scale)) / 2

    return loss


def turned(inputs: Inputs) -> Inputs:
    """Candidates as queries; of as many as there are queries, which have a partner."""
    n = len(inputs.queries)
    q, c, query_keys, candidate_keys = inputs
    return Inputs(c[:n], q, candidate_keys[:n], query_keys)


Chunk = tuple[Tensor, Tensor]  # sum of the losses, and of how many rows


def _chunk_logits(q: Tensor, c: Tensor, scale: Tensor) -> Tensor:
    return (q @ c.T).to(scale.dtype) * scale  # [rows, M]


def _chunk_of_multi_level(
    q: Tensor, c: Tensor, query_keys: Tensor, candidate_keys: Tensor, scale: Tensor, start: int
) -> Chunk:
    level = shared_grains(query_keys, candidate_keys)
    loss, used = multi_level_rows(_chunk_logits(q, c, scale), level, query_keys.shape[1])
    return loss.sum(), used.sum()


def _chunk_of_info_nce(
    q: Tensor, c: Tensor, query_keys: Tensor, candidate_keys: Tensor, scale: Tensor, start: int
) -> Chunk:
    z = _chunk_logits(q, c, scale)
    labels = torch.arange(start, start + len(q), device=q.device)
    return cross_entropy(z, labels, reduction="sum"), z.new_tensor(len(q))


def _chunk_of_siglip(
    q: Tensor, c: Tensor, query_keys: Tensor, candidate_keys: Tensor, scale: Tensor, start: int
) -> Chunk:
    z = _chunk_logits(q, c, scale) + BIAS
    row = torch.arange(len(q), device=q.device)
    sign = torch.full_like(z, -1)
    sign[row, start + row] = 1
    return -logsigmoid(sign * z).sum(), z.new_tensor(len(q))


# Of the libraries that a user trains with.


def _with_gradients(run: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> Tensor:
    """The loss of a function that back-propagates by itself, as one that autograd knows."""

    class Cached(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, c: Tensor) -> Tensor:
            with torch.enable_grad():
                q, c = (x.detach().requires_grad_() for x in (q, c))
                loss = run(q, c)
            ctx.save_for_backward(q.grad, c.grad)
            return loss.detach()

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
            return tuple(x * upstream[0] for x in ctx.saved_tensors)

    apply: Any = Cached.apply
    loss: Tensor = apply(inputs.queries, inputs.candidates)
    return loss


def _sentence_transformers(case: Case) -> Loss:
    """The loss stage of the cached losses: chunks of the score matrix, backward chunk by chunk."""
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
    )

    model: Any = torch.nn.Sequential(torch.nn.Identity())  # embeddings are given
    both: Any = {
        "directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction",
    }  # fmt: skip
    options = both if case.loss == "clip" else {}

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        library = CachedMultipleNegativesRankingLoss(
            model, scale=float(scale), mini_batch_size=MINI_BATCH, **options
        )
        if not torch.is_grad_enabled():
            return library.calculate_loss([[inputs.queries], [inputs.candidates]])
        return _with_gradients(
            lambda q, c: library.calculate_loss([[q], [c]], with_backward=True), inputs
        )

    return loss


@functools.cache
def _open_clip_losses() -> ModuleType:
    """`open_clip/loss.py` alone: the package imports torchvision, which its losses do not use."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = f"{found.submodule_search_locations[0]}/loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _open_clip(case: Case) -> Loss:
    """ClipLoss and SigLipLoss of one process; the version 3.3 has no chunks within a process."""
    module = _open_clip_losses()

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        q, c = (normalize(x, dim=1) for x in inputs[:2])
        if case.loss == "clip":
            return module.ClipLoss()(q, c, scale)
        return module.SigLipLoss()(q, c, scale, BIAS)

    return loss


# Losses of language models over a vocabulary: the candidates are its weight, the label of row i
# is i. They want unit embeddings, and the scale in the queries.

Linear = Callable[[Tensor, Tensor, Tensor], Tensor]  # input [N, D], weight [M, D], labels [N]


def _over_candidates(case: Case, linear: Linear) -> Loss:
    def one_way(q: Tensor, c: Tensor, scale: Tensor) -> Tensor:
        labels = torch.arange(len(q), device=q.device)
        return linear((q * scale).to(q.dtype), c, labels)

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        q, c = (normalize(x, dim=1) for x in inputs[:2])
        if case.loss != "clip":
            return one_way(q, c, scale)
        return (one_way(q, c, scale) + one_way(c[: len(q)], q, scale)) / 2

    return loss


def _has_linear_cross_entropy() -> bool:
    return hasattr(torch.nn.functional, "linear_cross_entropy") and hasattr(
        torch.nn, "LinearCrossEntropyOptions"
    )


def _linear_cross_entropy(case: Case) -> Loss:
    """In chunks, which have to be asked for."""
    from torch.nn.functional import linear_cross_entropy

    options = torch.nn.LinearCrossEntropyOptions()
    return _over_candidates(case, functools.partial(linear_cross_entropy, options=options))


# On a GPU. The calls are those of liger-kernel 0.8.5, cut-cross-entropy 25.1.1, inf-cl 1.2.1 and
# siglip-kernel 0.1.2, read in their sources.


def _liger(case: Case) -> Loss:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    library = LigerFusedLinearCrossEntropyLoss()
    return _over_candidates(case, lambda x, weight, labels: library(weight, x, labels))


def _cut_cross_entropy(case: Case, **options: Any) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return _over_candidates(case, functools.partial(linear_cross_entropy, **options))


def _inf_cl(case: Case) -> Loss:
    """Heads are blocks of the features that a kernel multiplies at a time: 256 at most."""
    from inf_cl import cal_inf_loss

    def linear(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        d = x.shape[1]
        head = next((size for size in (256, 128, 64, 32, 16) if d % size == 0), None)
        if head is None:
            raise ValueError(f"inf-cl takes features in multiples of 16, got {d}")
        # Not scale=: its backward pass wants a process group.
        return cal_inf_loss(x, weight, labels, head_dim=head)

    return _over_candidates(case, linear)


def _siglip_kernel(case: Case) -> Loss:
    from siglip_kernel import fused_siglip_loss

    def loss(inputs: Inputs, scale: Tensor) -> Tensor:
        q, c = (normalize(x, dim=1) for x in inputs[:2])
        return fused_siglip_loss(q, c, scale.log(), scale.new_tensor(BIAS))

    return loss


PROVIDERS: dict[str, Provider] = {
    OURS: Provider("grainrank", _grainrank, float64=False),
    "grainrank_float32": Provider(
        "grainrank, in float32", _widened, dtypes=_HALF, float64=False
    ),
    "grainrank_fused": _variant("grainrank, Triton, fused product", PLAIN, product="fused"),
    "grainrank_vendor": _variant("grainrank, Triton, vendor's product", product="vendor"),
    "grainrank_cuda": _variant("grainrank, CUDA", backend="cuda"),
    DENSE: Provider("dense PyTorch", lambda case: _dense(case.loss)),
    COMPILED: Provider("torch.compile of it", lambda case: compiled(_dense(case.loss))),
    "chunked": Provider("PyTorch, checkpointed chunks", chunked, PLAIN),
    "linear_cross_entropy": Provider(
        "F.linear_cross_entropy", _linear_cross_entropy, SOFTMAX
    ),
    "sentence_transformers_cached": Provider(
        "sentence-transformers, cached", _sentence_transformers, SOFTMAX,
        "sentence_transformers", "sentence-transformers", learns_scale=False,
    ),
    "open_clip": Provider(
        "open_clip", _open_clip, ("clip", "siglip"), "open_clip",
        "--no-deps open_clip_torch",
    ),
    "liger": Provider(
        "Liger-Kernel", _liger, SOFTMAX, "liger_kernel", "liger-kernel", gpu=True, float64=False,
    ),
    "cut_cross_entropy": Provider(
        "cut-cross-entropy", _cut_cross_entropy, SOFTMAX, "cut_cross_entropy",
        "cut-cross-entropy", _HALF, gpu=True, float64=False,
    ),
    "cut_cross_entropy_exact": Provider(
        "cut-cross-entropy, no filter", functools.partial(_cut_cross_entropy, filter_eps=None),
        SOFTMAX, "cut_cross_entropy", "cut-cross-entropy", _HALF, gpu=True, float64=False,
    ),
    "inf_cl": Provider(
        "inf-cl", _inf_cl, SOFTMAX, "inf_cl", "inf-cl", gpu=True, float64=False,
    ),
    "siglip_kernel": Provider(
        "siglip-kernel", _siglip_kernel, ("siglip",), "siglip_kernel", "siglip-kernel",
        gpu=True, float64=False,
    ),
}  # fmt: skip


def names_for(case: Case) -> list[str]:
    """The providers of the loss; those that run on a GPU only, where it is on one, and those of no
    package, where there is something to compare in this dtype.
    """
    gpu, dtype = case.setting.device.type == "cuda", case.setting.dtype
    return [
        name
        for name, x in PROVIDERS.items()
        if case.loss in x.losses and (gpu or not x.gpu) and (x.package or dtype in x.dtypes)
    ]
