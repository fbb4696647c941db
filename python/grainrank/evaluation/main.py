"""The `evaluate` subcommand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..console import positive
from .embeddings import TIES, evaluate_embeddings
from .inputs import BATCH_SIZE, Inputs, inputs_of, same_items
from .picture import draw
from .report import Report
from .run_file import write_run
from .table import show
from .tasks import DATA_SETS

OK, FAILED = 0, 2
DEPTH = 1000

_DESCRIPTION = (
    "Reports how a retriever ranks, grain by grain, from its embeddings (--queries and "
    "--candidates) or from a model (--model). What is relevant comes from judgements (--qrels), "
    "from the groups of each item (--query-grains, --candidate-grains) or from a built-in data "
    "set (--data). Exit code 0: ok, 2: it could not run. docs/evaluation.md says what each number "
    "means."
)


def add_parser(commands: Any) -> None:
    """Adds `evaluate` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "evaluate", help="report how a retriever ranks, grain by grain", description=_DESCRIPTION
    )
    _add_embeddings(parser)
    _add_relevance(parser)
    _add_metrics(parser)
    _add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank evaluate`."""
    try:
        inputs = inputs_of(arguments)
        report = _report(inputs, arguments)
        found = {
            "versions": {"grainrank": __version__, "torch": torch.__version__},
            "data": inputs.task.title,
            "embeddings": inputs.source,
            **report.to_dict(),
        }
        _write_files(inputs, report, found, arguments)
    except (OSError, RuntimeError, TypeError, ValueError, ModuleNotFoundError) as error:
        print(f"grainrank evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{inputs.task.title}\n{inputs.source}")
        show(report)
    return OK


def _report(inputs: Inputs, arguments: argparse.Namespace) -> Report:
    levels = inputs.task.levels
    if arguments.exclude_self:
        levels = levels.exclude(*same_items(inputs.task))
    return evaluate_embeddings(
        inputs.queries,
        inputs.candidates,
        levels,
        ks=arguments.ks,
        ndcg_k=arguments.ndcg_k,
        gain=arguments.gain,
        ties=arguments.ties,
        normalize=not arguments.dot,
        level_names=inputs.task.level_names,
        workspace_mb=arguments.workspace_mb,
    )


def _write_files(
    inputs: Inputs, report: Report, found: dict[str, Any], arguments: argparse.Namespace
) -> None:
    if arguments.run_file is not None:
        write_run(
            arguments.run_file,
            inputs.queries,
            inputs.candidates,
            inputs.task,
            depth=arguments.depth or DEPTH,
            ties=arguments.ties,
            normalize=not arguments.dot,
            same=same_items(inputs.task) if arguments.exclude_self else None,
            workspace_mb=arguments.workspace_mb,
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw(report, arguments.picture)


def _add_embeddings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("embeddings")
    group.add_argument("--queries", metavar="FILE",
                       help="[N, D]: a .npy or .safetensors file, or FILE:NAME")  # fmt: skip
    group.add_argument("--candidates", metavar="FILE", help="[M, D], likewise")
    group.add_argument("--model", metavar="PATH_OR_NAME",
                       help="folder or hub name (which is downloaded): a sentence-transformers "
                       "model; else a transformers model, mean pooling over the attention mask, or "
                       "the text and image features of a CLIP model")  # fmt: skip
    group.add_argument("--query-texts", type=Path, metavar="FILE", help="one text a line")
    group.add_argument("--candidate-texts", type=Path, metavar="FILE", help="one text a line")
    group.add_argument("--query-prompt", metavar="TEXT",
                       help="before each query (default: what the sentence-transformers model "
                       "says, else nothing)")  # fmt: skip
    group.add_argument("--candidate-prompt", metavar="TEXT", help="before each candidate, likewise")
    group.add_argument("--batch-size", type=positive, metavar="B",
                       help=f"texts of a batch (default {BATCH_SIZE})")  # fmt: skip
    group.add_argument("--device", help="of the model (default: cuda where there is one, else cpu)")
    group.add_argument("--dot", action="store_true",
                       help="rank by the dot product, not by cosine similarity")  # fmt: skip


def _add_relevance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("relevance")
    group.add_argument("--data", choices=DATA_SETS, help="built-in data set, texts and grains")
    splits = "; ".join(f"{data}: {', '.join(names)}" for data, names in DATA_SETS.items())
    group.add_argument("--split", help=f"its queries, the default first: {splits}")
    group.add_argument("--qrels", type=Path, metavar="FILE",
                       help="TREC judgements: query 0 candidate grade")  # fmt: skip
    group.add_argument("--query-ids", type=Path, metavar="FILE",
                       help="one id a line (default: row numbers from 0)")  # fmt: skip
    group.add_argument("--candidate-ids", type=Path, metavar="FILE", help="likewise")
    group.add_argument("--query-grains", type=Path, metavar="FILE",
                       help="integers [N, K] as .npy, coarse to fine, negative: unknown; "
                       ".tsv or .csv: the header names the grains, empty: unknown")  # fmt: skip
    group.add_argument("--candidate-grains", type=Path, metavar="FILE", help="[M, K], likewise")
    group.add_argument("--grain-names", type=_names, metavar="A,B,C",
                       help="coarse to fine (default: the header)")  # fmt: skip
    group.add_argument("--match", choices=["prefix", "count"],
                       help="the level is the number of leading equal grains (prefix, default), or "
                       "of all equal grains")  # fmt: skip
    group.add_argument("--exclude-self", action="store_true",
                       help="leave out the candidate that has the query's id")  # fmt: skip


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("metrics")
    group.add_argument("--ks", type=_cutoffs, default=(1, 10), metavar="K,K",
                       help="of recall and success (default 1,10)")  # fmt: skip
    group.add_argument("--ndcg-k", type=positive, default=10, metavar="K", help="default 10")
    group.add_argument("--gain", type=_gain, default="linear", metavar="GAIN",
                       help="of nDCG: linear (the level, default), exp2 (2^level - 1), or a number "
                       "of each level from 0 on, such as 0,1,4")  # fmt: skip
    group.add_argument("--ties", choices=TIES, default="last",
                       help="of equal similarities (default last, as trec_eval)")  # fmt: skip
    group.add_argument("--workspace-mb", type=float, metavar="MIB",
                       help="bound of a block's memory")  # fmt: skip


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs")
    group.add_argument("--json", action="store_true", help="print JSON, not the table")
    group.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to a file too")
    group.add_argument("--run", dest="run_file", type=Path, metavar="FILE",
                       help="write a TREC run: query Q0 candidate rank score tag")  # fmt: skip
    group.add_argument("--depth", type=positive, metavar="K",
                       help=f"candidates of each query in the run (default {DEPTH})")  # fmt: skip
    group.add_argument("--picture", type=Path, metavar="FILE.png",
                       help="draw what stands at ranks 1 to 10, by grain")  # fmt: skip


def _cutoffs(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers from 1 on, such as 1,10, got {text}")
    return tuple(map(int, parts))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _gain(text: str) -> str | tuple[float, ...]:
    if text in ("linear", "exp2"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be linear, exp2, or numbers such as 0,1,4, got {text}"
        ) from None
