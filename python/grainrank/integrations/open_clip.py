"""open_clip's losses without the matrix, with its signature, and with grains.

    loss = ClipLoss()  # instead of open_clip.create_loss(args)
    losses = loss(**model_out, output_dict=True)  # as in its training loop
    losses = loss(**model_out, grains=grains, output_dict=True)

open_clip itself is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..levels import GrainKeys
from ..losses import MultiLevelRankingLoss, SigLIPLoss
from ..losses.module import LossModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ClipLoss", "SigLipLoss"]


class ClipLoss(nn.Module):
    """open_clip's `ClipLoss`: the mean of both directions, and with `grains` the multi-level loss.

    Without grains it equals `open_clip.ClipLoss()(image_features, text_features, logit_scale)`; the
    bias, which cancels in a softmax, is ignored. On several processes every rank gives its own
    features and `group=torch.distributed.group.WORLD`: the loss and, under DDP, the gradients are
    those of the whole batch, the scale's too (open_clip needs `--local-loss --gather-with-grad`).

    Args:
        loss: another loss module of grainrank, given the scale with each call. None (default):
            `MultiLevelRankingLoss`.
        group: the ranks whose batches are one; None (default): this process alone.
        options: of `MultiLevelRankingLoss`, such as `level_weights`.

    Example:
        >>> from grainrank.integrations.open_clip import ClipLoss
        >>> generator = torch.Generator().manual_seed(0)
        >>> images, texts = torch.nn.functional.normalize(
        ...     torch.randn(2, 4, 8, generator=generator), dim=-1
        ... )
        >>> grains = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]])  # coarse to fine
        >>> loss = ClipLoss()(images, texts, torch.tensor(14.3), grains=grains, output_dict=True)
        >>> list(loss)
        ['contrastive_loss']
    """

    def __init__(
        self,
        loss: LossModule | None = None,
        *,
        group: ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if loss is not None and options:
            raise TypeError(
                f"options belong to the default loss, got loss and {', '.join(options)}; "
                f"give them to the loss"
            )
        self.loss = MultiLevelRankingLoss(**options) if loss is None else loss
        self.group = group

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        grains: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of normalised features `[N, D]`; `grains` int `[N, K]`, coarse to fine."""
        levels = None if grains is None else GrainKeys(grains, grains)
        total: Tensor = self.loss(
            image_features,
            text_features,
            levels,
            logit_scale=logit_scale,
            **self._options(logit_bias),
        )
        return {"contrastive_loss": total} if output_dict else total

    def _options(self, logit_bias: Tensor | None) -> dict[str, Any]:
        return {"direction": "symmetric", "normalize": False, "group": self.group}


class SigLipLoss(ClipLoss):
    """open_clip's `SigLipLoss`: a sigmoid for each pair, with the model's scale and bias.

    With `grains` every pair that shares a grain is positive, weighted by `level_weights`.

    Args:
        group: as in `ClipLoss`.
        options: of `SigLIPLoss`, such as `level_weights`.

    Example:
        >>> from grainrank.integrations.open_clip import SigLipLoss
        >>> eye = torch.eye(4)
        >>> round(SigLipLoss()(eye, eye, torch.tensor(10.0), torch.tensor(-10.0)).item(), 4)
        0.6933
    """

    def __init__(self, *, group: ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(SigLIPLoss(**options), group=group)

    def _options(self, logit_bias: Tensor | None) -> dict[str, Any]:
        if logit_bias is None:
            raise ValueError(
                "logit_bias must be the model's bias, got None; create the model with "
                "init_logit_bias=-10, as open_clip does for SigLIP"
            )
        return {"logit_bias": logit_bias, "normalize": False, "group": self.group}
