"""Large batches in small memory: one loss over embeddings that are computed in mini-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

#: Embeddings `[n, D]` of a mini-batch, or several of them, such as those of texts and of pictures.
Encode = Callable[[Any], Tensor | Sequence[Tensor]]


def cached_loss(
    encode: Encode,
    mini_batches: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    module: nn.Module | None = None,
) -> Tensor:
    """The loss of the whole batch, with the activations of one mini-batch at a time (GradCache).

        loss(torch.cat([encode(b) for b in mini_batches]))

    The mini-batches are embedded without a graph, the loss and the gradients of the embeddings are
    computed, and `backward()` embeds each mini-batch again to pass its gradients on: two forward
    passes for the memory of a mini-batch. The second repeats the random numbers (dropout) of the
    first. All gradients are those of the plain loss, those of a learned temperature too, and take
    part in gradient accumulation and gradient scaling.

    Args:
        encode: gives the embeddings `[n, D]` of a mini-batch, or a sequence of such tensors.
        mini_batches: what `encode` takes, in the order of the batch; 1 or more.
        loss: takes the embeddings `[N, D]` of the whole batch, as many as `encode` gives, and
            returns a 0-d tensor.
        module: the `DistributedDataParallel` model that `encode` runs, if it is one: its gradients
            are reduced once, with the last mini-batch.

    Returns:
        The loss, 0-d. `backward()` runs the encoder; without gradients (`torch.no_grad()`) it is
        the plain loss.

    Raises:
        ValueError: no mini-batches, or a loss that is not 0-d.

    Source:
        Gao et al., arXiv 2101.06983.

    Example:
        >>> from grainrank.grad_cache import cached_loss
        >>> encoder = torch.nn.Linear(4, 8)
        >>> pairs = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
        >>> loss = cached_loss(
        ...     lambda batch: encoder(batch).unbind(1),  # queries [n, D] and candidates [n, D]
        ...     pairs.split(2),
        ...     lambda q, c: info_nce_loss(q, c, temperature=0.1),
        ... )
        >>> loss.backward()
        >>> encoder.weight.grad.shape
        torch.Size([8, 4])
    """
    if len(mini_batches) == 0:
        raise ValueError("mini_batches must hold one mini-batch or more, got none")
    states: list[_RandomState] = []
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for batch in mini_batches:
            states.append(_RandomState(batch))
            parts.append(_embeddings(encode(batch)))
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]  # [N, D] each
    if not torch.is_grad_enabled():
        return loss(*whole)
    for tensor in whole:
        tensor.requires_grad_()
    total = loss(*whole)
    if total.dim() != 0:
        raise ValueError(
            f'loss must return a 0-d tensor, got shape {tuple(total.shape)}; use reduction="mean"'
        )
    result = total.detach().requires_grad_()

    def replay(upstream: Tensor) -> None:
        # Those of the embeddings, and of what the loss learns itself.
        torch.autograd.backward(total, upstream)
        gradients = [tensor.grad for tensor in whole]
        start = 0
        for i, (batch, state) in enumerate(zip(mini_batches, states, strict=True)):
            last = i == len(mini_batches) - 1
            with _synchronised(module, last), state.again(), torch.enable_grad():
                found = _embeddings(encode(batch))
                stop = start + len(found[0])
                known = [
                    (tensor, gradient[start:stop])
                    for tensor, gradient in zip(found, gradients, strict=True)
                    if tensor.requires_grad and gradient is not None
                ]
                if known:
                    torch.autograd.backward([x for x, _ in known], [g for _, g in known])
            start = stop

    result.register_hook(replay)
    return result


def _embeddings(found: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


@contextlib.contextmanager
def _synchronised(module: nn.Module | None, last: bool) -> Iterator[None]:
    """Gradients are reduced over the ranks with the last mini-batch alone."""
    no_sync = getattr(module, "no_sync", None)
    if last or no_sync is None:
        yield
    else:
        with no_sync():
            yield


class _RandomState:
    """The random state before a mini-batch, on the CPU and the devices of its tensors."""

    def __init__(self, batch: Any) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*_tensors(batch))

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif hasattr(batch, "values"):  # a dict, or transformers' BatchEncoding
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)
