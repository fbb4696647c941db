"""Policies around an embedding, for models that do not sample: exploration by noise."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from ..validation import (
    accumulation_dtype,
    check_count,
    check_device,
    check_floats,
    check_number,
    check_tensor,
)

_ROUNDS = 256  # of rejection; one round accepts 2 of 3 at the least


class GaussianPolicy:
    """Rollouts are the embedding plus noise of the same scale in every coordinate.

        x = m + scale * noise,  noise standard normal
        log p(x) = -|x - m|^2 / (2 scale^2) - D log(scale) - D/2 log(2 pi)

    The noise has the length scale * sqrt(D): for unit embeddings, scale = s / sqrt(D) turns them by
    about atan(s), so a cosine of 0.9 to the embedding takes s = 0.48, and 0.017 as the scale of 768
    features. Embeddings of another length take a scale as many times larger. Where the similarity
    is a cosine the length of a rollout does not matter, and `VonMisesFisherPolicy` explores
    directions alone.

    Args:
        scale: standard deviation of each coordinate, in the units of the embeddings.

    Raises:
        TypeError, ValueError: a scale that is no positive number; embeddings or rollouts of the
            wrong type, shape, dtype or device.

    Source:
        Williams, Simple statistical gradient-following algorithms, 1992, section 6.

    Example:
        >>> q = torch.nn.functional.normalize(torch.ones(4, 8)).requires_grad_()
        >>> policy = GaussianPolicy(scale=0.1)
        >>> drawn = policy.sample(q, rollouts=6, generator=torch.Generator().manual_seed(0))
        >>> drawn.shape, policy.log_prob(drawn, q).shape
        (torch.Size([6, 4, 8]), torch.Size([6, 4]))
    """

    def __init__(self, scale: float) -> None:
        self.scale = check_number("scale", scale)

    def __repr__(self) -> str:
        return f"GaussianPolicy(scale={self.scale:g})"

    @torch.no_grad()
    def sample(
        self, embeddings: Tensor, rollouts: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """`[G, N, D]` from embeddings `[N, D]`, without gradient; float32, or float64 for float64.

        `rollouts` is G. `reshape(-1, D)` makes queries of them.
        """
        m = _embeddings("embeddings", embeddings)
        noise = _normal((_count(rollouts), *m.shape), m, generator)
        return noise.mul_(self.scale).add_(m)

    def log_prob(self, rollouts: Tensor, embeddings: Tensor) -> Tensor:
        """`[G, N]`: the logarithm of the density; differentiable in both."""
        m = _embeddings("embeddings", embeddings)
        x = _rollouts(rollouts, m)
        square = (x - m).square().sum(dim=-1)  # [G, N]
        constant = m.shape[1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        return square / (-2 * self.scale**2) - constant

    def kl(self, embeddings: Tensor, reference: Tensor) -> Tensor:
        """`[N]`: KL(policy || policy around the reference), `|m - m'|^2 / (2 scale^2)`.

        Differentiable in the embeddings; exact, and symmetric.
        """
        m, r = _pair(embeddings, reference)
        return (m - r).square().sum(dim=-1) / (2 * self.scale**2)


class VonMisesFisherPolicy:
    """Rollouts are unit vectors around the direction of the embedding.

        log p(x) = concentration <m, x> + log C,  m = embedding / |embedding|
        C = concentration^(D/2 - 1) / ((2 pi)^(D/2) I_{D/2-1}(concentration))

    The mean cosine of a rollout to the embedding is A = `mean_cosine(D)`. To have a mean cosine of
    about A, take concentration = A (D - A^2) / (1 - A^2): 3634 for 0.9 and 768 features.

    In float32 a log-probability is off by about concentration * 1e-7; float64 embeddings are not.

    Args:
        concentration: how near rollouts are; 0 would be uniform.

    Raises:
        TypeError, ValueError: a concentration that is no positive number; embeddings or rollouts of
            the wrong type, shape, dtype or device; `sample`: an embedding without a direction.

    Source:
        Ulrich, Computer generation of distributions on the m-sphere, 1984; Wood, Simulation of the
        von Mises Fisher distribution, 1994; Banerjee et al., JMLR 2005, eq. 4.4 (the rule above).

    Example:
        >>> q = torch.ones(4, 8, requires_grad=True)
        >>> policy = VonMisesFisherPolicy(concentration=50.0)
        >>> drawn = policy.sample(q, rollouts=6, generator=torch.Generator().manual_seed(0))
        >>> drawn.shape, policy.log_prob(drawn, q).shape
        (torch.Size([6, 4, 8]), torch.Size([6, 4]))
        >>> round(policy.mean_cosine(8), 3)
        0.932
    """

    def __init__(self, concentration: float) -> None:
        self.concentration = check_number("concentration", concentration)

    def __repr__(self) -> str:
        return f"VonMisesFisherPolicy(concentration={self.concentration:g})"

    def mean_cosine(self, features: int) -> float:
        """A = I_{D/2}(concentration) / I_{D/2-1}(concentration), the mean of `<m, x>`."""
        return _bessel_ratio(features / 2 - 1, self.concentration)

    @torch.no_grad()
    def sample(
        self, embeddings: Tensor, rollouts: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """`[G, N, D]` unit vectors from embeddings `[N, D]`, without gradient; float32, or float64
        for float64.

        `rollouts` is G. `reshape(-1, D)` makes queries of them.
        """
        m = _directions("embeddings", embeddings)
        if not bool((m.square().sum(dim=1) > 0.5).all()):  # also of NaN
            raise ValueError(
                "embeddings must be finite and not 0 to have a direction, got a row that is not; "
                "look at the encoder's output"
            )
        x = _normal((_count(rollouts), *m.shape), m, generator)  # [G, N, D]
        drop = self._drop(x.shape[:2], m, generator)  # [G, N], 1 - cosine
        tail = x[..., 1:]
        if m.shape[1] == 2:
            tail.copy_(torch.where(tail < 0, -1.0, 1.0))
        length = torch.linalg.vector_norm(tail, dim=-1, dtype=torch.float64)
        tail.mul_(((drop * (2 - drop)).sqrt() / length)[..., None])
        # The reflection that takes the first axis to -sign(m_1) m, which never cancels.
        sign = torch.where(m[:, 0] < 0, -1.0, 1.0).to(m.dtype)
        x[..., 0] = -sign * (1 - drop)
        axis = m.clone()  # [N, D]
        axis[:, 0] += sign
        share = torch.einsum("gnd,nd->gn", x, axis) / (1 + m[:, 0].abs())
        x.sub_(share[..., None] * axis)
        return x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64))

    def _drop(self, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """1 - cosine of rollouts, float64 `[G, N]`: Ulrich's rejection as Wood gives it.

        Written in what is small: neither a large concentration nor many features cancel.
        """
        k, d = self.concentration, like.shape[1]
        b = (d - 1) / (2 * k + math.hypot(2 * k, d - 1))
        rest = 2 * b / (1 + b)  # 1 - x0
        drop = like.new_empty(shape, dtype=torch.float64).flatten()
        open_ = torch.arange(drop.numel(), device=drop.device)
        for _ in range(_ROUNDS):
            u, v, test = torch.rand(
                3, len(open_), dtype=torch.float64, device=drop.device, generator=generator
            )
            z = 0.5 * (1 + _radius(u, d) * torch.cos(2 * math.pi * v))  # Beta(a, a), a = (d - 1)/2
            w = 2 * b * z / (1 - (1 - b) * z)  # 1 - cosine
            quotient = (rest + (1 - rest) * w) * (1 + b) ** 2 / (4 * b)  # (1-x0 cos) / (1-x0^2)
            accepted = k * (rest - w) + (d - 1) * quotient.log() >= torch.log1p(-test)
            drop[open_[accepted]] = w[accepted]
            open_ = open_[~accepted]
            if len(open_) == 0:
                return drop.view(shape)
        raise RuntimeError(
            f"{len(open_)} rollouts were rejected {_ROUNDS} times; the generator is not random"
        )

    def log_prob(self, rollouts: Tensor, embeddings: Tensor) -> Tensor:
        """`[G, N]`: the logarithm of the density on the sphere; differentiable in both.

        Rollouts are taken to be unit vectors, as `sample` gives them.
        """
        m = _directions("embeddings", embeddings)
        x = _rollouts(rollouts, m)
        cosine = torch.einsum("gnd,nd->gn", x, m)
        return self.concentration * cosine + _log_normaliser(m.shape[1], self.concentration)

    def kl(self, embeddings: Tensor, reference: Tensor) -> Tensor:
        """`[N]`: KL(policy || policy around the reference), `concentration * A * (1 - cosine)`.

        Differentiable in the embeddings; exact, and symmetric.
        """
        m, r = (unit_rows(x, dim=1) for x in _pair(embeddings, reference))
        drop = 0.5 * (m - r).square().sum(dim=-1)  # 1 - cosine, which would cancel
        return self.concentration * self.mean_cosine(m.shape[1]) * drop


def _radius(u: Tensor, features: int) -> Tensor:
    """Length of the first two of D coordinates, of points that are uniform on the unit sphere."""
    if features == 2:
        return torch.ones_like(u)
    return (-torch.expm1(torch.log1p(-u) * (2 / (features - 2)))).sqrt()


@functools.lru_cache(maxsize=64)
def _bessel_ratio(order: float, x: float) -> float:
    """I_{order+1}(x) / I_order(x), by Gauss's continued fraction from its far end.

    A step contracts the error by the square of the ratio, about 1 - 2 m / x where m is below x: so
    many steps forget with what value they began.
    """
    ratio = 0.0
    for m in range(math.ceil(min(x, 8 * math.sqrt(x))) + 40, 0, -1):
        ratio = 1 / (2 * (order + m) / x + ratio)
    return ratio


@functools.lru_cache(maxsize=64)
def _log_normaliser(features: int, x: float) -> float:
    """log C, see above; from the power series of I, summed from its largest term."""
    order = features / 2 - 1
    half = math.log(x / 2)
    top = int((math.hypot(order, x) - order) / 2)  # its index
    total = term = 1.0
    for m in itertools.count(top + 1):
        term *= (x / 2) ** 2 / (m * (m + order))
        total += term
        if term < 1e-18:
            break
    term = 1.0
    for m in range(top, 0, -1):
        term *= m * (m + order) / (x / 2) ** 2
        total += term
        if term < 1e-18:
            break
    peak = 2 * top * half - math.lgamma(top + 1) - math.lgamma(top + order + 1)
    # I = (x / 2)^order e^peak total
    return order * math.log(2) - 0.5 * features * math.log(2 * math.pi) - peak - math.log(total)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def _count(rollouts: int) -> int:
    return check_count("rollouts", rollouts, "G, an integer")


def _embeddings(name: str, value: object) -> Tensor:
    """`[N, D]` in the dtype of sums."""
    tensor = check_floats(name, value)
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape [N, D] with D >= 1, got {list(tensor.shape)}; "
            f"flatten all leading dimensions into one"
        )
    return tensor.to(accumulation_dtype(tensor.dtype))


def _directions(name: str, value: object) -> Tensor:
    tensor = _embeddings(name, value)
    if tensor.shape[1] == 1:
        raise ValueError(f"{name} must have D = 2 or more features on a sphere, got 1")
    return unit_rows(tensor, dim=1)


def _rollouts(value: object, embeddings: Tensor) -> Tensor:
    tensor = check_tensor("rollouts", value)
    if tensor.dim() != 3 or tensor.shape[1:] != embeddings.shape:
        n, d = embeddings.shape
        raise ValueError(
            f"rollouts must have shape [G, N, D] = [G, {n}, {d}], got {list(tensor.shape)}; "
            f"pass what sample returned for these embeddings"
        )
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"rollouts must be floating, got {tensor.dtype}")
    check_device("rollouts", tensor, embeddings.device)
    return tensor.to(embeddings.dtype)


def _pair(embeddings: object, reference: object) -> tuple[Tensor, Tensor]:
    m, r = _embeddings("embeddings", embeddings), _embeddings("reference", reference)
    if m.shape != r.shape:
        raise ValueError(
            f"reference must have the shape of embeddings, {list(m.shape)}, got {list(r.shape)}"
        )
    return m, r.detach().to(m.dtype)
