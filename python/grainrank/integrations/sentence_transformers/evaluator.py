"""An evaluator that takes graded judgements."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor

from ...evaluation import Report, evaluate_embeddings
from ...levels import LevelSource, SparseLevels

logger = logging.getLogger("grainrank")

Qrels = Mapping[Any, Mapping[Any, int]]


class GradedRetrievalEvaluator(BaseEvaluator):
    """How a model ranks a corpus by graded relevance: nDCG of the grades, and metrics by level.

    `InformationRetrievalEvaluator` knows relevant and not; this one takes grades, or the grains of
    both sides. Ranks are exact, over the whole corpus, and the matrix of scores is not stored.

    Args:
        queries: text of each query id.
        corpus: text of each document id.
        qrels: grade of the judged documents of a query, `{query id: {document id: grade}}`, grades
            -1 (left out), 0 or 1..15; or a level source of grainrank over the queries and the
            corpus in their order, such as `GrainKeys(query_grains, corpus_grains)`.
        name: of the data set, in the names of the metrics and of the CSV file.
        ks: cut-offs of recall.
        ndcg_k: the cut-off of nDCG, the primary metric.
        gain: of nDCG: `"linear"`, the grade, or `"exp2"`, `2^grade - 1`.
        level_names: names of the levels 1..L, coarse to fine; None: 1..L.
        batch_size, show_progress_bar: of the encoder.
        query_prompt, corpus_prompt: instead of the model's own.
        write_csv: write a line for each evaluation into the trainer's output folder.

    Raises:
        TypeError, ValueError: judgements of ids that are not there, or an argument of the wrong
            type or size.

    Source:
        `grainrank.evaluation.evaluate_embeddings`; docs/evaluation.md says what each number means.
    """

    def __init__(
        self,
        queries: Mapping[Any, str],
        corpus: Mapping[Any, str],
        qrels: Qrels | LevelSource,
        *,
        name: str = "",
        ks: Sequence[int] = (1, 10),
        ndcg_k: int = 10,
        gain: Literal["linear", "exp2"] = "linear",
        level_names: Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        query_prompt: str | None = None,
        corpus_prompt: str | None = None,
        write_csv: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if len(queries) == 0 or len(corpus) == 0:
            raise ValueError(
                f"queries and corpus must not be empty, got {len(queries)} and {len(corpus)} texts"
            )
        self.queries, self.corpus = list(queries.values()), list(corpus.values())
        if isinstance(qrels, LevelSource):
            self.levels: LevelSource = qrels
        else:
            self.levels = SparseLevels.from_qrels(list(queries), list(corpus), qrels)
        self.name, self.ks, self.ndcg_k, self.gain = name, tuple(ks), ndcg_k, gain
        self.level_names = None if level_names is None else list(level_names)
        self.batch_size, self.show_progress_bar = batch_size, show_progress_bar
        self.query_prompt, self.corpus_prompt = query_prompt, corpus_prompt
        self.write_csv = write_csv
        self.csv_file = f"graded_retrieval_evaluation{'_' + name if name else ''}_results.csv"
        self.primary_metric = f"ndcg@{ndcg_k}[{gain}]"
        if name:
            self.primary_metric = f"{name}_{self.primary_metric}"

    def report(self, model: Any) -> Report:
        """Everything, as `evaluate_embeddings` gives it."""
        return evaluate_embeddings(
            self._embed(model.encode_query, self.queries, self.query_prompt),
            self._embed(model.encode_document, self.corpus, self.corpus_prompt),
            self.levels,
            ks=self.ks,
            ndcg_k=self.ndcg_k,
            gain=self.gain,
            level_names=self.level_names,
            normalize=_is_cosine(model),
        )

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metrics by name; shares from 0 to 1. Those that no query has are left out."""
        report = self.report(model)
        found = _metrics(report)
        logger.info(
            "graded retrieval evaluation of %s:\n%s", self.name or "the model", report.table()
        )
        if output_path is not None and self.write_csv:
            self._write(Path(output_path), epoch, steps, found)
        known = {key: value for key, value in found.items() if value is not None}
        metrics = self.prefix_name_to_metrics(known, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return dict(metrics)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        config: dict[str, Any] = {"ks": self.ks, "ndcg_k": self.ndcg_k, "gain": self.gain}
        return config | ({"level_names": self.level_names} if self.level_names else {})

    def _embed(self, encode: Any, texts: list[str], prompt: str | None) -> Tensor:
        found: Tensor = encode(
            texts,
            prompt=prompt,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            convert_to_tensor=True,
        )
        return found.detach().float().cpu().clone()  # not an inference tensor

    def _write(
        self, folder: Path, epoch: int, steps: int, metrics: dict[str, float | None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.csv_file
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["epoch", "steps", *metrics])
            writer.writerow([epoch, steps, *metrics.values()])


def _metrics(report: Report) -> dict[str, float | None]:
    found = {
        report.ndcg_name: report.ndcg,
        "hierarchical_ap": report.hierarchical_ap,
        "level_violation_rate": report.level_violation_rate,
    }
    for level in report.levels:
        found |= {f"{level.name}_recall@{k}": share for k, share in level.recall.items()}
        found |= {f"{level.name}_mrr": level.mrr, f"{level.name}_map": level.map}
    return {key.replace(" ", "_"): value for key, value in found.items()}


def _is_cosine(model: Any) -> bool:
    """The model's own similarity; one by distance has no dot product."""
    name = str(getattr(model, "similarity_fn_name", None) or "cosine")
    if name not in ("cosine", "dot"):
        raise ValueError(
            f'the model\'s similarity_fn_name must be "cosine" or "dot", got {name!r}; '
            f"set model.similarity_fn_name"
        )
    return name == "cosine"
