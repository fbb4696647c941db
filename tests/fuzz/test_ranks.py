"""Ranks, metrics and search with hostile embeddings and levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fuzz import inputs
from fuzz.oracle import TRIED, Results, check, refusal
from fuzz.test_losses import Case, batches, gradients, made, unjudged, upstream, with_gradients
from hypothesis import assume, example, given
from hypothesis import strategies as st

import grainrank
from grainrank import metrics

_NAN = float("nan")
LOSSES: dict[str, dict[str, tuple[Any, ...]]] = {
    "smooth_ap_loss": {"temperature": (0.01, 0.5)},
    "smooth_recall_loss": {"temperature": (0.01, 0.5), "ks": ((1, 2, 4), (1,), (10**6,))},
    "smooth_ndcg_loss": {"temperature": (0.01, 0.5), "gain": ("linear", "exp2")},
}

_WRONG: dict[str, tuple[Any, ...]] = {
    "temperature": (0, _NAN, "3"),
    "ks": ((), (0,), (1.5,), "3"),
    "gain": ("3", [1.0], [0.0] * 17),
}


@st.composite
def exact_cases(draw: st.DrawFn) -> Case:
    options = {
        "ties": inputs.mostly(
            draw, (None, "first", "last", "optimistic", "pessimistic"), ("random",)
        ),
        "workspace_mb": inputs.mostly(draw, (None, 0.01, 0.1), (1e-6, 0, _NAN)),
        "normalize": False,
    }
    case = Case("positive_ranks", memory=None, options=options, **draw(batches()))
    kinds = inputs.mostly(draw, (("integers", "integers"), ("integers", "equal")), (case.kinds,))
    return replace(case, kinds=kinds)


@given(case=exact_cases(), as_arrays=st.sampled_from((False, False, True)))
def test_exact_ranks_and_metrics(case: Case, as_arrays: bool) -> None:
    """Of integers equal to those of the reference, whatever the ties."""
    # Other numbers may be ties in one order of a sum alone.
    exact = all(kind in ("integers", "equal", "zeros") for kind in case.kinds)

    def call(backend: str, dtype: torch.dtype, draw: int) -> Results:
        arguments = made(case, backend, dtype, 2 * draw)
        if as_arrays and case.dtype != torch.bfloat16:
            for name in ("queries", "candidates"):
                arguments[name] = arguments[name].resolve_neg().numpy()
        ranks = grainrank.positive_ranks(**arguments, **case.options)
        fields = ranks._asdict()
        similarity = fields.pop("similarity")
        if not exact:
            return {name: fields[name] for name in ("indptr", "indices", "level", "count")}
        tables = {
            "recall": metrics.recall_at(ranks, 3),
            "precision": metrics.precision_at(ranks, 10),
            "mrr": metrics.reciprocal_rank(ranks),
            "map": metrics.average_precision(ranks),
            "ndcg": metrics.ndcg_at(ranks, 10, gain="linear"),
        }
        found = {name: t for name, t in fields.items() if t is not None}
        # The metrics are made of integers, and their dtype is not that of the embeddings.
        return found | {"similarity": similarity} | {n: (1e6 * t).long() for n, t in tables.items()}

    if "nan" not in case.kinds and "inf" not in case.kinds:
        check(call, case.dtype)
    elif case.levels is None or case.levels.margin is None:
        # The passes refuse what the reference does not look for.
        refused = refusal(lambda: call("cpu", case.dtype, 0))
        embeddings = made(replace(case, levels=None), "cpu", case.dtype, 0).values()
        # A layout that repeats one feature, or one row, may have left the NaN out.
        assume(not all(x.isfinite().all() for x in embeddings if isinstance(x, torch.Tensor)))
        assert refused is not None
        TRIED["refused"] += 1


@st.composite
def smooth_cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(list(LOSSES)))
    options = {
        option: inputs.mostly(draw, values, _WRONG[option])
        for option, values in LOSSES[name].items()
    }
    options["workspace_mb"] = inputs.mostly(draw, (None, 0.01, 0.1), (1e-6, 0))
    options["normalize"] = draw(st.booleans())
    case = Case(name, memory=None, options=options, **draw(batches()))
    # Of an infinite similarity a smooth rank says nothing.
    return replace(case, kinds=tuple("nan" if kind == "inf" else kind for kind in case.kinds))  # type: ignore[arg-type]


# Candidates of length 0 among others, whose gradients are roundings of what cancels, times 1e12.
_OF_NO_LENGTH = Case(
    function="smooth_ap_loss",
    shape=(64, 67, 2),
    memory=None,
    dtype=torch.float64,
    kinds=("normal", "integers"),
    layouts=("one feature", "negated view"),
    levels=inputs.Levels(
        leaves=(
            inputs.Source(
                name="keys",
                seed=149,
                max_level=4,
                match="prefix",
                dtype=torch.int64,
                transposed=True,
                given_level=None,
                low=-1,
                high=1,
                wrong="unsorted",
                thresholds=(0.5,),
                own_thresholds=False,
                extra=(0, 0),
            ),
        ),
        exclude=False,
        margin=None,
        relative=True,
        reference=False,
        curated=False,
    ),
    seed=14649,
    options={"temperature": 0.01, "workspace_mb": None, "normalize": True},
)


@example(case=_OF_NO_LENGTH)
@given(case=smooth_cases())
def test_losses_on_smooth_ranks(case: Case) -> None:
    names = ("queries", "candidates")

    def call(backend: str, dtype: torch.dtype, draw: int) -> Results:
        arguments = made(case, backend, dtype, draw)
        leaves = with_gradients(arguments, names)
        loss = getattr(grainrank, case.function)(**arguments, **case.options)
        loss.backward(upstream(loss) if loss.dim() > 0 else torch.tensor(1.5, dtype=loss.dtype))
        return {"loss": loss.detach(), **gradients(leaves, names, case)}

    check(call, case.dtype, infinite="nan" in case.kinds, unjudged=unjudged(case))


@given(
    shape=st.tuples(inputs.ROWS, inputs.COLUMNS, inputs.FEATURES),
    layouts=st.tuples(*[st.sampled_from(inputs.LAYOUTS)] * 2),
    dtype=st.sampled_from(inputs.FLOATS),
    seed=inputs.SEEDS,
    k=st.sampled_from((1, 1, 2, 3, 10, 64, 0, -1, 10**9, True, 1.0)),
    chunk_rows=st.sampled_from((None, None, 1, 7, 64, 0, -1)),
    workspace_mb=st.sampled_from((None, None, 0.01, 1e-6, 0.0)),
    excluded=st.booleans(),
)
def test_search(
    shape: tuple[int, int, int],
    layouts: tuple[str, str],
    dtype: torch.dtype,
    seed: int,
    k: Any,
    chunk_rows: int | None,
    workspace_mb: float | None,
    excluded: bool,
) -> None:
    """The order of a stable sort of exact scores."""
    n, m, d = shape
    q, c = (
        inputs.laid_out(inputs.embeddings(rows, d, "integers", dtype, seed + i), layouts[i])
        for i, rows in enumerate((n, m))
    )
    ids = torch.randint(0, 4, (n + m,), generator=inputs.generator(seed))
    exclude = (ids[:n], ids[n:]) if excluded else None
    found = []

    def call() -> None:
        found.append(
            grainrank.search(
                q, c, k, normalize=False, exclude=exclude, workspace_mb=workspace_mb,
                chunk_rows=chunk_rows,
            )
        )  # fmt: skip

    error = refusal(call)
    TRIED["right" if error is None else "refused"] += 1
    if error is not None:
        return
    scores = q.double() @ c.double().T
    if exclude is not None:
        scores.masked_fill_(exclude[0][:, None] == exclude[1], -torch.inf)
    expected = torch.from_numpy(np.argsort(-scores.numpy(), axis=1, kind="stable"))[:, :k]
    best = scores.gather(1, expected)
    assert torch.equal(found[0].scores.double(), best)
    assert torch.equal(found[0].indices, expected.masked_fill(best == -torch.inf, -1))
