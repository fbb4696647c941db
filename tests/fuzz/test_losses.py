"""Every loss and the level tables, with hostile embeddings, levels and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fuzz import inputs
from fuzz.oracle import Results, check
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import grainrank

# The options of its own that each may have; the first ones are those that it has by default.
OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "multi_level_ranking_loss": {
        "positives": ("exact", "at_least"),
        "negatives": ("lower", "unrelated"),
        "level_weights": (None,) * 6 + ([1.0], [1.0, 0.5, 2.0]),
        "level_temperatures": (None,) * 6 + ([0.5], [0.5, 1.0, 0.25]),
    },
    "info_nce_loss": {},
    "clip_loss": {},
    "siglip_loss": {"logit_bias": (0.0, -3.0), "level_weights": (None,) * 6 + ([1.0, 2.0],)},
    "sup_con_loss": {},
    "hard_negative_nce_loss": {"hardness": (0.25, 0.0, 1.0, 2.0)},
    "rince_loss": {"form": ("in", "out", "out-in")},
    "csl_loss": {"margins": (None,) * 6 + ([0.1], [0.3, 0.2, 0.1])},
    "pairwise_ranking_loss": {"margin": (0.0, 0.2), "scope": ("row", "row", "batch")},
    "cosent_loss": {},
    "list_net_loss": {},
    "softmax_ranking_loss": {"gains": (None,) * 6 + ([1.0], [1.0, 3.0, 7.0])},
    "unique_softmax_loss": {"gains": (None,) * 6 + ([1.0], [1.0, 3.0, 7.0])},
    "circle_loss": {"gamma": (80.0, 1.0, 0.0), "margin": (0.4, 0.25, -1.0)},
}
_WITHOUT_SCALE = ("circle_loss",)
_NAN = float("nan")
_MORE = 8  # features of an ordinary draw


@dataclass(frozen=True)
class Case:
    function: str
    shape: tuple[int, int, int]  # N, M, D
    memory: int | None
    dtype: torch.dtype
    kinds: tuple[str, str]
    layouts: tuple[str, str]
    levels: inputs.Levels | None
    seed: int
    options: dict[str, Any]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """What every case has."""
    levels = draw(st.one_of(st.none(), *[inputs.levels()] * 5))
    n, m, d = draw(st.tuples(inputs.ROWS, inputs.COLUMNS, inputs.FEATURES))
    if levels is None:
        n = inputs.mostly(draw, (min(n, m),), (n,))
    shape = inputs.mostly(draw, ((n, m, d),), ((0, m, d), (n, 0, d), (n, m, 0)))
    two = [st.tuples(*[st.sampled_from(x)] * 2) for x in (inputs.KINDS, inputs.LAYOUTS)]
    return {
        "shape": shape,
        "dtype": draw(st.sampled_from(inputs.FLOATS)),
        "kinds": draw(two[0]),
        "layouts": draw(two[1]),
        "levels": levels,
        "seed": draw(inputs.SEEDS),
    }


@st.composite
def shared_options(draw: st.DrawFn, features: int) -> dict[str, Any]:
    normalize = draw(st.booleans())
    # All of the gradient through the norm of a single feature cancels.
    shortest = min(features, 4) if normalize else 1
    lengths = (shortest, (features + shortest) // 2, features)
    options = {
        "normalize": normalize,
        "direction": inputs.mostly(
            draw,
            ("query_to_candidate", "query_to_candidate", "candidate_to_query", "symmetric"),
            ("joint", "joint", "candidates"),
        ),
        "reduction": inputs.mostly(draw, ("mean", "mean", "mean", "sum", "none"), ("batch",)),
        "workspace_mb": inputs.mostly(
            draw, (None, None, 0.01, 0.1), (0.001, 1e-6, 0, -1.0, _NAN, "1", True)
        ),
        "matryoshka_dims": inputs.mostly(
            draw,
            (None, None, lengths[:1], lengths[2:], tuple(sorted(set(lengths)))),
            ((), (0,), (features + 1,), (1, 1), (-1,), (1.5,), 1),
        ),
        "nan": inputs.mostly(draw, ("propagate",), ("raise", "ignore")),
    }
    return {name: value for name, value in options.items() if value is not None}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(list(OWN)))
    batch = draw(batches())
    options = draw(shared_options(batch["shape"][2]))
    for option, values in OWN[name].items():
        value = inputs.mostly(draw, values, ("2", _NAN))
        if value is not None:
            options[option] = value
    if name not in _WITHOUT_SCALE and "level_temperatures" not in options:
        scale = draw(st.sampled_from(("temperature", "logit_scale")))
        options[scale] = inputs.mostly(
            draw, (0.05, 0.5, 1.0, 20.0), (1e-4, 1e4, 1e-300, 1e300, 0.0, -1.0, _NAN, None)
        )
    if name == "siglip_loss":  # its reference has NaN where a candidate that is NaN is ignored
        batch["kinds"] = tuple("normal" if kind == "nan" else kind for kind in batch["kinds"])
    return Case(
        function=name,
        memory=draw(st.sampled_from((None, None, None, None, 0, 1, 5, 17))),
        options=options,
        **batch,
    )


def made(case: Case, backend: str, dtype: torch.dtype, draw: int) -> dict[str, Any]:
    """The arguments, but for the options; the numbers are those of the case's own dtype.

    Every other draw is an ordinary one: where all terms of a hostile one cancel, its result says
    nothing of their size, by which the rule of accuracy measures an error. Tiny rows stay tiny:
    they make the terms of a gradient through their norm large.
    """
    n, m, d = case.shape
    kinds, layouts = case.kinds, case.layouts
    if draw % 2 == 1:
        kinds = tuple("tiny" if kind == "tiny" else "normal" for kind in kinds)
        d, layouts = d + _MORE, ("contiguous", "contiguous")
    x = [
        inputs.embeddings(rows, d, kind, case.dtype, case.seed + 3 * draw + i).to(dtype)
        for i, (rows, kind) in enumerate(zip((n, m), kinds, strict=True))
    ]
    q, c = (inputs.laid_out(*given) for given in zip(x, layouts, strict=True))
    arguments: dict[str, Any] = {"queries": q.detach(), "candidates": c.detach()}
    columns = m
    if case.memory is not None:
        columns += case.memory
        further = inputs.embeddings(case.memory, d, kinds[1], case.dtype, case.seed + 3 * draw + 2)
        arguments["memory"] = inputs.laid_out(further.to(dtype), layouts[0])
    if case.levels is not None:
        arguments["levels"] = inputs.make_levels(case.levels, n, columns)
        if case.levels.margin is not None and case.levels.relative:
            assume(not any(_cancel(q, y) for y in (c, arguments.get("memory", c))))
    return arguments | {"backend": backend}


def _cancel(q: Tensor, c: Tensor) -> bool:
    """Whether a similarity is 0 but for roundings, which decide what lies above a share of it."""
    similarity = q.double() @ c.double().T
    terms = q.double().norm(dim=1)[:, None] * c.double().norm(dim=1)
    return bool(((similarity.abs() < 1e-6 * terms) & (terms > 0)).any())


def options_of(case: Case, draw: int) -> dict[str, Any]:
    """Those of the draw: of an ordinary one the prefixes are longer too."""
    dims = case.options.get("matryoshka_dims")
    if draw % 2 == 0 or not isinstance(dims, tuple):
        return case.options
    return case.options | {"matryoshka_dims": tuple(d + _MORE for d in dims)}


def with_gradients(arguments: dict[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """These arguments collect gradients."""
    return [arguments[name].requires_grad_() for name in names]


def gradients(leaves: list[Tensor], names: tuple[str, ...], case: Case) -> Results:
    """Without finite ones of rows of length 0 that are normalised (see `unjudged`)."""

    def judged(x: Tensor) -> Tensor:
        if x.grad is None:
            return torch.zeros_like(x)
        short = (x.detach() == 0).all(dim=1, keepdim=True) & x.grad.isfinite()
        return torch.where(short & case.options.get("normalize", True), 0.0, x.grad)

    return {f"d_{name}": judged(x) for name, x in zip(names, leaves, strict=True)}


def finite(case: Case) -> bool:
    return "nan" not in case.kinds and "inf" not in case.kinds


def unjudged(case: Case) -> tuple[str, ...]:
    """The gradient of a row of length 0 is 1e12 times as large as what its terms cancel to; and, of
    a short one, 1e3 times, which shows where gradients are rounded to bfloat16 on their way.
    """
    shortest = ("zeros", "tiny") if case.dtype == torch.bfloat16 else ("zeros",)
    short = any(kind in shortest for kind in case.kinds)
    return ("d_queries", "d_candidates") if short and case.options.get("normalize", True) else ()


def upstream(like: Tensor) -> Tensor:
    """A gradient that is not uniform."""
    return torch.linspace(-1, 2, like.numel(), dtype=torch.float64).to(like.dtype).view_as(like)


@given(case=cases())
def test_every_loss(case: Case) -> None:
    function = getattr(grainrank, case.function)
    names = ("queries", "candidates")

    def call(backend: str, dtype: torch.dtype, draw: int) -> Results:
        arguments = made(case, backend, dtype, draw)
        leaves = with_gradients(arguments, names)
        loss = function(**arguments, **options_of(case, draw))
        loss.backward(upstream(loss) if loss.dim() > 0 else torch.tensor(1.5, dtype=loss.dtype))
        return {"loss": loss.detach(), **gradients(leaves, names, case)}

    check(call, case.dtype, infinite=not finite(case), unjudged=unjudged(case))


_TABLES = ("lse", "neg_lse", "total", "count")


@given(case=batches().map(lambda x: Case("level_statistics", memory=None, options={}, **x)))
def test_the_tables(case: Case) -> None:
    """With their gradients; of the extremes a tie of rounding decides where these go."""
    names = ("queries", "candidates")

    def call(backend: str, dtype: torch.dtype, draw: int) -> Results:
        arguments = made(case, backend, dtype, draw)
        leaves = with_gradients(arguments, names)
        stats = grainrank.level_statistics(**arguments, temperature=0.5)._asdict()
        tables = [stats[name] for name in ("lse", "neg_lse", "total")]
        there = stats["count"] > 0
        torch.autograd.backward(tables, [upstream(t) * there for t in tables])
        results = {name: stats[name].detach() for name in (*_TABLES, "highest", "lowest")}
        return results | gradients(leaves, names, case)

    check(call, case.dtype, infinite=not finite(case), unjudged=unjudged(case))
