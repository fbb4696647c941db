"""From the command's options to embeddings and a task."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .embeddings import Embeddings
from .encoders import Encoder, load_encoder
from .files import read_embeddings, read_ids, read_lines
from .relevance import grain_levels, qrels_levels
from .tasks import DATA_SETS, Task, built_in_task

BATCH_SIZE = 32


class Inputs(NamedTuple):
    """What is evaluated."""

    queries: Embeddings
    candidates: Embeddings
    task: Task
    source: str  #: where the embeddings come from


def inputs_of(given: argparse.Namespace) -> Inputs:
    """Reads the files, then, last because it takes longest, runs the model.

    Raises:
        ValueError, OSError, ModuleNotFoundError: with the option that is to blame.
    """
    _check_options(given)
    built_in = _built_in(given)
    if given.model is None:
        q = read_embeddings("--queries", given.queries)
        c = read_embeddings("--candidates", given.candidates)
        _check_shape("--queries", q)
        _check_shape("--candidates", c)
        task = built_in or _task_of_files(given, len(q), len(c))
        _check_rows(task, len(q), len(c))
        return Inputs(q, c, task, f"{given.queries}, {given.candidates}")
    task = built_in or _task_of_texts(given)
    encoder = load_encoder(given.model, _device(given.device), given.batch_size or BATCH_SIZE)
    if task.candidate_pictures is not None and encoder.pictures is None:
        raise ValueError(
            f"--split {given.split} ranks pictures, so --model must be a CLIP model, "
            f"got {encoder.description}; choose another split"
        )
    q = encoder.texts(task.query_texts, "query", given.query_prompt)
    c = _candidates(encoder, task, given.candidate_prompt)
    return Inputs(q, c, task, encoder.description)


def same_items(task: Task) -> tuple[Tensor, Tensor]:
    """Numbers of the ids, equal where these are: int64 `[N]` and `[M]`."""
    numbers: dict[str, int] = {}
    q, c = (
        torch.tensor([numbers.setdefault(item, len(numbers)) for item in ids])
        for ids in (task.query_ids, task.candidate_ids)
    )
    return q, c


def _device(name: str | None) -> str:
    there = torch.cuda.is_available()
    if name is None:
        return "cuda" if there else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"--device must be such as cpu or cuda:0, got {name}") from error
    if kind == "cuda" and not there:
        raise ValueError(f"--device must be one that torch has, got {name}; leave it out for cpu")
    return name


def _candidates(encoder: Encoder, task: Task, prompt: str | None) -> Tensor:
    if task.candidate_pictures is not None and encoder.pictures is not None:
        return encoder.pictures(task.candidate_pictures)
    return encoder.texts(task.candidate_texts, "candidate", prompt)


def _built_in(given: argparse.Namespace) -> Task | None:
    if given.data is None:
        return None
    if given.split not in (None, *DATA_SETS[given.data]):
        raise ValueError(
            f"--split must be one of {', '.join(DATA_SETS[given.data])} for --data {given.data}, "
            f"got {given.split}"
        )
    return built_in_task(given.data, given.split)


def _task_of_texts(given: argparse.Namespace) -> Task:
    queries = read_lines("--query-texts", given.query_texts)
    candidates = read_lines("--candidate-texts", given.candidate_texts)
    task = _task_of_files(given, len(queries), len(candidates))
    return task._replace(query_texts=queries, candidate_texts=candidates)


def _task_of_files(given: argparse.Namespace, n: int, m: int) -> Task:
    query_ids = read_ids("--query-ids", given.query_ids, n, "queries")
    candidate_ids = read_ids("--candidate-ids", given.candidate_ids, m, "candidates")
    if given.qrels is not None:
        levels = qrels_levels(given.qrels, query_ids, candidate_ids)
        names = tuple(f"grade {level}" for level in range(1, levels.max_level + 1))
        return Task(str(given.qrels), query_ids, candidate_ids, levels, names)
    keys, grains = grain_levels(
        given.query_grains,
        given.candidate_grains,
        given.grain_names,
        given.match or "prefix",
        (n, m),
    )
    title = f"{given.query_grains}, {given.candidate_grains}"
    return Task(title, query_ids, candidate_ids, keys, grains)


def _check_options(given: argparse.Namespace) -> None:
    """Which options belong together."""
    embedded = _pair(given, "queries", "candidates")
    texts = _pair(given, "query_texts", "candidate_texts")
    grains = _pair(given, "query_grains", "candidate_grains")
    if embedded == (given.model is not None):
        raise ValueError(
            f"either --model, or --queries and --candidates must be given, got "
            f"{'both' if embedded else 'neither'}; embeddings come from a model or from files"
        )
    relevance = [given.data is not None, given.qrels is not None, grains]
    if sum(relevance) != 1:
        raise ValueError(
            f"exactly one of --data, --qrels, and --query-grains with --candidate-grains must be "
            f"given, got {sum(relevance)}; it says which candidates are relevant"
        )
    if given.model is not None and given.data is None and not texts:
        raise ValueError(
            "--model needs --query-texts and --candidate-texts, or --data, got neither; "
            "pass files with one text a line"
        )
    _belongs(given, "--data", given.data is not None, ["split"])
    model = ["query_prompt", "candidate_prompt", "batch_size", "device"]
    _belongs(given, "--model", given.model is not None, model)
    texts_wanted = given.model is not None and given.data is None
    _belongs(given, "--model without --data", texts_wanted, ["query_texts"])
    _belongs(given, "--query-grains", grains, ["grain_names", "match"])
    _belongs(given, "--qrels or grains", given.data is None, ["query_ids", "candidate_ids"])
    _belongs(given, "--run", given.run_file is not None, ["depth"])


def _pair(given: argparse.Namespace, first: str, second: str) -> bool:
    """Whether both are given; one alone is an error."""
    there = [getattr(given, name) is not None for name in (first, second)]
    if there[0] != there[1]:
        one, other = (first, second) if there[0] else (second, first)
        raise ValueError(f"{_option(one)} needs {_option(other)}, got it alone; pass both")
    return there[0]


def _belongs(given: argparse.Namespace, to: str, there: bool, names: Iterable[str]) -> None:
    for name in names:
        if getattr(given, name) is not None and not there:
            raise ValueError(f"{_option(name)} belongs to {to}, got it without; leave it out")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_shape(option: str, embeddings: Embeddings) -> None:
    if embeddings.ndim != 2:
        raise ValueError(
            f"{option} must have shape [rows, D], got {tuple(embeddings.shape)}; "
            f"flatten all leading dimensions into one"
        )


def _check_rows(task: Task, n: int, m: int) -> None:
    for option, ids, count, of in (
        ("--queries", task.query_ids, n, "queries"),
        ("--candidates", task.candidate_ids, m, "candidates"),
    ):
        if len(ids) != count:
            raise ValueError(
                f"{option} must have one row for each of the {len(ids):,} {of} of {task.title}, "
                f"got {count:,}; grainrank.evaluation.built_in_task gives the texts in order"
            )
