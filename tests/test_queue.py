"""The embedding queue: what it holds, and that losses take it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from grainrank import EmbeddingQueue, GrainKeys, clip_loss, info_nce_loss

STEPS = [torch.arange(i, i + 3).float()[:, None].expand(3, 4) for i in range(0, 15, 3)]


def held(queue: EmbeddingQueue) -> list[int]:
    return sorted(queue.embeddings[:, 0].int().tolist())


def test_the_last_ones_stay() -> None:
    queue = EmbeddingQueue(size=7, dim=4)
    assert queue.embeddings.shape == (0, 4)
    seen = []
    for step in STEPS:
        queue.push(step)
        seen.append(held(queue))
    assert seen == [
        [0, 1, 2], [0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10, 11],
        [8, 9, 10, 11, 12, 13, 14],
    ]  # fmt: skip
    assert len(queue) == 7


@pytest.mark.parametrize("before", [0, 2])
def test_more_than_it_holds_at_once(before: int) -> None:
    queue = EmbeddingQueue(size=5, dim=1, num_keys=1)
    for values in (torch.arange(before), torch.arange(10, 22)):
        queue.push(values[:, None].float(), values[:, None])
    assert held(queue) == [17, 18, 19, 20, 21]
    assert sorted(queue.keys[:, 0].tolist()) == [17, 18, 19, 20, 21]


def test_keys_belong_to_their_embeddings() -> None:
    queue = EmbeddingQueue(size=4, dim=4, num_keys=2)
    for step in STEPS:
        queue.push(step, torch.stack([step[:, 0], 10 * step[:, 0]], dim=1).long())
    assert torch.equal(queue.keys[:, 0], queue.embeddings[:, 0].long())
    assert torch.equal(queue.keys[:, 1], 10 * queue.keys[:, 0])


def test_state_and_copies() -> None:
    queue = EmbeddingQueue(size=4, dim=4, num_keys=1)
    queue.push(STEPS[0], torch.arange(3)[:, None])
    other = EmbeddingQueue(size=4, dim=4, num_keys=1)
    other.load_state_dict(queue.state_dict())
    twin = copy.deepcopy(queue)
    queue.push(STEPS[1], torch.arange(3)[:, None])
    assert held(other) == held(twin) == [0, 1, 2]
    assert held(queue) == [2, 3, 4, 5]
    assert queue.double().embeddings.dtype == torch.float64


def test_training_with_it(backend: Any) -> None:
    """Rows see the queue; nothing flows into it."""
    generator = torch.Generator().manual_seed(0)
    q, c = torch.randn(2, 5, 4, generator=generator).requires_grad_().unbind()
    keys = torch.arange(5)[:, None] % 3
    queue = EmbeddingQueue(size=8, dim=4, num_keys=1)
    queue.push(c, keys)
    queue.push(c.flip(0), keys.flip(0))
    assert not queue.embeddings.requires_grad
    every = torch.cat([c, queue.embeddings])
    levels = GrainKeys(keys, torch.cat([keys, queue.keys]))
    ours = info_nce_loss(q, c, levels, temperature=0.2, memory=queue.embeddings, backend=backend)
    torch.testing.assert_close(ours, info_nce_loss(q, every, levels, temperature=0.2))
    clip_loss(q, c, levels, temperature=0.2, memory=queue.embeddings, backend=backend).backward()


@pytest.mark.parametrize("frozen", ["queries", "candidates", "both"])
def test_the_scale_sees_the_memory(frozen: str, backend: Any) -> None:
    """Whichever side needs a gradient."""
    q, c, memory = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(3.0, requires_grad=True)

    def gradient(candidates: Tensor, **options: Any) -> Tensor:
        a = q.clone().requires_grad_(frozen == "candidates")
        b = candidates.clone().requires_grad_(frozen == "queries")
        loss = info_nce_loss(a, b, logit_scale=scale, backend=backend, **options)
        (d,) = torch.autograd.grad(loss, scale)
        return d

    torch.testing.assert_close(gradient(c, memory=memory), gradient(torch.cat([c, memory])))


def test_an_empty_queue_changes_nothing(backend: Any) -> None:
    q, c = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    queue = EmbeddingQueue(size=8, dim=4)
    plain = info_nce_loss(q, c, temperature=0.2, backend=backend)
    assert info_nce_loss(q, c, temperature=0.2, memory=queue.embeddings, backend=backend) == plain


ONE = torch.zeros(1, 4)
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no room": (lambda: EmbeddingQueue(0, 4), ValueError, "size must be at least 1, got 0"),
    "half a row": (lambda: EmbeddingQueue(0.5, 4), TypeError, "size must be an int, got float"),  # type: ignore[arg-type]
    "other features": (
        lambda: EmbeddingQueue(3, 5).push(ONE), ValueError,
        r"embeddings must have shape \[B, 5\], got \(1, 4\)",
    ),
    "integers": (lambda: EmbeddingQueue(3, 4).push(ONE.long()), TypeError, "must be floating"),
    "keys of nobody": (
        lambda: EmbeddingQueue(3, 4).push(ONE, torch.zeros(1, 1).long()), ValueError, "num_keys"
    ),
    "no keys": (
        lambda: EmbeddingQueue(3, 4, 2).push(ONE), ValueError, r"keys must have shape \[B, 2\]"
    ),
    "float keys": (
        lambda: EmbeddingQueue(3, 4, 1).push(ONE, torch.zeros(1, 1)), TypeError, "hold integers"
    ),
    "keys of others": (
        lambda: EmbeddingQueue(3, 4, 1).push(ONE, torch.zeros(2, 1).long()), ValueError,
        r"keys must have shape \[1, 1\], got \(2, 1\)",
    ),
    "a memory of other features": (
        lambda: use(memory=torch.zeros(3, 5)), ValueError, r"memory must have shape \[Q, D\] = "
    ),
    "a memory for candidates": (
        lambda: use(memory=ONE, direction="candidate_to_query"), ValueError,
        'memory has candidates for the queries alone, got direction="candidate_to_query"',
    ),
}  # fmt: skip


def use(**options: Any) -> Tensor:
    return info_nce_loss(ONE, ONE, temperature=0.1, **options)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    run, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        run()
