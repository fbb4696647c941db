"""Evaluation of many candidates beside what a user has: time against the bare products, and memory.

    python benchmarks/retrieval.py

writes results/retrieval-avx2.json. Embeddings of a hierarchy of three grains, float32. Each of the
alternatives finds the best candidates or orders all of them; none of them computes the metrics.
Times are of one process, in turn; memory is of processes of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from peak_memory import measured_apart
from sklearn.neighbors import NearestNeighbors
from timing import summary
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import GrainKeys, search
from grainrank.bench.memory import peak_of
from grainrank.bench.timing import interleave
from grainrank.evaluation import evaluate_embeddings
from grainrank.machine import machine_header

RESULT = Path(__file__).parent / "results" / "retrieval-avx2.json"
GROUP = (1000, 50, 5)  # candidates of a coarse, a middle and a fine grain
SPREAD = (0.5, 0.5, 0.5, 0.5)  # of the grains' centres, and of the items
K = 100
ROWS = 100  # of a block of the full sort: 1.2 GB for a million candidates


def embeddings(m: int, n: int, d: int) -> tuple[Tensor, Tensor, GrainKeys]:
    """Unit rows; a query is a candidate with noise of its own."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(m)
    c = torch.zeros(m, d)
    for size, spread in zip((*GROUP, 1), SPREAD, strict=True):
        centres = torch.randn(-(-m // size), d, generator=generator)
        c += spread * centres[index // size]
    c = normalize(c, dim=1)
    of_query = torch.randint(m, (n,), generator=generator)
    q = normalize(c[of_query] + torch.randn(n, d, generator=generator) * d**-0.5, dim=1)
    keys = torch.stack([index // size for size in GROUP], dim=1)
    return q, c, GrainKeys(keys[of_query], keys)


def bare_products(q: Tensor, c: Tensor, _: GrainKeys) -> None:
    """Of blocks of the size that is fastest here."""
    out = torch.empty(len(q), 8192)
    for start in range(0, len(c), 8192):
        part = c[start : start + 8192]
        torch.mm(q, part.t(), out=out[:, : len(part)])


def evaluation(q: Tensor, c: Tensor, levels: GrainKeys) -> None:
    report = evaluate_embeddings(q, c, levels)
    assert report.judged == len(q)


def top_k(q: Tensor, c: Tensor, _: GrainKeys) -> None:
    search(q, c, K)


def torch_argsort(q: Tensor, c: Tensor, _: GrainKeys) -> None:
    for rows in q.split(ROWS):
        (rows @ c.t()).argsort(dim=1, descending=True)


def faiss_exact(q: Tensor, c: Tensor, _: GrainKeys) -> None:
    faiss.knn(q.numpy(), c.numpy(), K, metric=faiss.METRIC_INNER_PRODUCT)


def scikit_learn(q: Tensor, c: Tensor, _: GrainKeys) -> None:
    neighbours = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="euclidean")
    neighbours.fit(c.numpy()).kneighbors(q.numpy(), return_distance=False)


Provider = Callable[[Tensor, Tensor, GrainKeys], None]
PROVIDERS: dict[str, Provider] = {
    "bare products": bare_products,
    "grainrank evaluate": evaluation,
    "grainrank search": top_k,
    "faiss-cpu knn": faiss_exact,
    "scikit-learn brute": scikit_learn,
    "torch argsort": torch_argsort,
}
FEW_ROUNDS = ("scikit-learn brute", "torch argsort")  # several times as long as the others


def memory_of(name: str, m: int, n: int, d: int) -> int:
    PROVIDERS[name](*embeddings(1000, 16, d))
    inputs = embeddings(m, n, d)
    return peak_of(lambda: PROVIDERS[name](*inputs))


def check(q: Tensor, c: Tensor) -> None:
    """The best candidates of all are the same, but for ties of the last bit."""
    found = search(q, c, K)
    _, indices = faiss.knn(q.numpy(), c.numpy(), K, metric=faiss.METRIC_INNER_PRODUCT)
    same = (found.indices == torch.from_numpy(indices)).double().mean().item()
    if same < 0.999:
        raise AssertionError(f"search and faiss agree on {same:.2%} of the places")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=1_000_000, metavar="M")
    parser.add_argument("--queries", type=int, default=1000, metavar="N")
    parser.add_argument("--features", type=int, default=256, metavar="D")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory-of", choices=list(PROVIDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    m, n, d = given.candidates, given.queries, given.features
    if given.memory_of is not None:
        print(memory_of(given.memory_of, m, n, d))
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    inputs = embeddings(m, n, d)
    check(inputs[0][:10], inputs[1])

    def providers(names: list[str]) -> dict[str, Callable[[], Any]]:
        return {name: lambda run=PROVIDERS[name]: run(*inputs) for name in names}

    fast = [name for name in PROVIDERS if name not in FEW_ROUNDS]
    seconds = interleave(providers(fast), given.rounds)
    slow = interleave(providers(["bare products", *FEW_ROUNDS]), 1)
    sizes = [f"--candidates={m}", f"--queries={n}", f"--features={d}"]
    input_bytes = sum(x.numel() * x.element_size() for x in inputs[:2])
    result: dict[str, Any] = {
        "what": "time and peak memory over the inputs, beside the bare products of all pairs",
        "machine": machine_header(),
        "M": m, "N": n, "D": d, "k": K,
        "positives_of_a_query": GROUP[0],
        "input_bytes": input_bytes,
        "flops": 2 * m * n * d,
        "providers": {},
    }  # fmt: skip
    for name in PROVIDERS:
        times = slow if name in FEW_ROUNDS else seconds
        result["providers"][name] = {
            **summary(times, name, "bare products"),
            "peak_bytes": measured_apart(__file__, sizes, name),
        }
        if given.out != RESULT:
            print(name, result["providers"][name])
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
