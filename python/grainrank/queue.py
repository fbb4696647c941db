"""Cross-batch memory: embeddings of earlier steps as further candidates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .validation import INTEGER_DTYPES, check_tensor


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings that were pushed, and their keys, as buffers.

    Args:
        size: the most embeddings that it holds, Q.
        dim: features D.
        num_keys: key columns K that every embedding brings, for the level source; 0: none.
        dtype: of the embeddings; `state_dict` and `.to(...)` move them like any buffer.

    A new queue is empty; once it is full, the oldest embeddings make room.

    Raises:
        ValueError: a size or dim below 1, or num_keys below 0; `push`: shapes that do not fit.
        TypeError: `push`: embeddings that are not floating, keys that are not integers.

    Source:
        Cross-batch memory, Wang et al., CVPR 2020, arXiv 1912.06798; MoCo, He et al., CVPR 2020.

    Example:
        >>> queue = EmbeddingQueue(size=6, dim=8, num_keys=2)
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]])
        >>> for _ in range(2):  # the training loop
        ...     levels = GrainKeys(keys, torch.cat([keys, queue.keys]))
        ...     loss = multi_level_ranking_loss(
        ...         q, c, levels, temperature=0.1, memory=queue.embeddings
        ...     )
        ...     queue.push(c, keys)
        >>> queue.embeddings.shape, queue.keys.shape
        (torch.Size([6, 8]), torch.Size([6, 2]))
    """

    def __init__(
        self, size: int, dim: int, num_keys: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        for name, value, low in (("size", size, 1), ("dim", dim, 1), ("num_keys", num_keys, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        self._embeddings: Tensor
        self._keys: Tensor
        self._pushed: Tensor
        self.register_buffer("_embeddings", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("_keys", torch.full((size, num_keys), -1))
        self.register_buffer("_pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """How many embeddings it holds."""
        return min(int(self._pushed), self._embeddings.shape[0])

    @property
    def embeddings(self) -> Tensor:
        """`[Q, D]`, Q as many as it holds; in no order. The `memory=` of the losses."""
        return self._embeddings[: len(self)]

    @property
    def keys(self) -> Tensor:
        """`[Q, K]`, int64, of the same embeddings."""
        return self._keys[: len(self)]

    @torch.no_grad()
    def push(self, embeddings: Tensor, keys: Tensor | None = None) -> None:
        """Adds embeddings `[B, D]`, without their gradient, and their keys `[B, K]`.

        Of more than `size` the last ones stay.
        """
        size, dim = self._embeddings.shape
        num_keys = self._keys.shape[1]
        x = check_tensor("embeddings", embeddings)
        if not x.dtype.is_floating_point:
            raise TypeError(f"embeddings must be floating, got {x.dtype}")
        if x.dim() != 2 or x.shape[1] != dim:
            raise ValueError(f"embeddings must have shape [B, {dim}], got {tuple(x.shape)}")
        if (keys is None) != (num_keys == 0):
            raise ValueError(
                f"keys must have shape [B, {num_keys}], got {keys if keys is None else 'some'}; "
                f"say num_keys when you make the queue"
            )
        at = (self._pushed + torch.arange(x.shape[0], device=self._pushed.device)) % size
        at = at[-size:]
        if keys is not None:
            k = check_tensor("keys", keys)
            if k.dtype not in INTEGER_DTYPES:
                raise TypeError(f"keys must hold integers, got {k.dtype}")
            if tuple(k.shape) != (x.shape[0], num_keys):
                raise ValueError(
                    f"keys must have shape [{x.shape[0]}, {num_keys}], got {tuple(k.shape)}"
                )
            self._keys[at] = k[-size:].to(self._keys)
        self._embeddings[at] = x.detach()[-size:].to(self._embeddings)
        self._pushed += x.shape[0]
