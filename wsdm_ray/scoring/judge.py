"""A classifier in this process: `Judge("model").compare(prompt, a, b)` and `.score(frame)`, without Ray.

It runs the same code as a replica of `score`, on units of the same rows, so its numbers are the same.
"""

import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import pandas as pd
import pyarrow as pa
import torch
from tqdm.std import tqdm

from wsdm_ray.config import Columns, ScoreConfig
from wsdm_ray.errors import ClusterError, ConfigError, DataError, ModelError
from wsdm_ray.failures import unpack_error
from wsdm_ray.modeling.precision import default_device
from wsdm_ray.schema import TEXTS, predictions_schema
from wsdm_ray.scoring.encode import encode_texts
from wsdm_ray.scoring.model_check import check_models, fastest_layout
from wsdm_ray.scoring.pair_rows import PairRows, read_pair_rows
from wsdm_ray.scoring.recovery import DeviceLostError
from wsdm_ray.scoring.replica import Replica, ReplicaOptions, ReportProgress
from wsdm_ray.telemetry import in_terminal

__all__ = ["Comparison", "Judge"]

Folder = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a `Judge` says of one pair; `float(comparison)` is `prob_a`."""

    prob_a: float
    """The probability that response_a wins: the mean over models and orderings."""
    winner: str
    """`model_a` or `model_b`."""
    prob_a_ab: float | None
    """The same with response_a first in the text; None where that ordering was not run."""
    prob_a_ba: float | None
    """The same with response_b first in the text; None where that ordering was not run."""
    tokens: int
    """Of one ordering, after truncation."""
    cut_tokens: int
    """That truncation left out."""

    def __float__(self) -> float:
        return self.prob_a


class Judge:
    """One or more classifiers, loaded in this process.

    With the same models, options and device its numbers are bitwise those of `score`, for the same rows in
    the same order. A pair in other company may differ by a rounding, except on GPUs whose precision is
    batch-invariant.

    It may be used from several threads: calls run one after the other. `close`, or the end of a `with` block,
    frees the models' memory.

    Args:
        model: checkpoint folder of `train` or `quantize`; several are averaged.
        model_weights: weight of each model in the mean probability; by default equal.
        base: folder of the base model, by default where it was in training: one for all models, or one each.
        device: `auto` (the GPU if there is one), `cuda` or `cpu`.
        precision: as `score --precision`.
        orders: `both`, `ab`, `ba` or `adaptive`.
        adaptive_threshold: for `adaptive`, a row is in doubt if its probability is less than this from 0.5.
        layout: as `score --layout`.
        token_budget: the most tokens of one micro-batch; by default what suits the device.
        max_tokens: the most tokens of one ordering; by default as many as in training.
        unit_rows: rows that are tokenized and planned together.
        logits: add the columns logit_ab and logit_ba to what `score` returns.
        columns: the input's own column names, such as `{"prompt": "question"}`.

    Raises:
        ModelError, StorageError: a model is not usable. ConfigError: an option is not.
        ClusterError: the models do not fit the GPU's memory.
    """

    def __init__(
        self,
        model: Folder | Sequence[Folder],
        *,
        model_weights: Sequence[float] = (),
        base: Folder | Sequence[Folder] = (),
        device: Literal["auto", "cuda", "cpu"] = "auto",
        precision: str = "auto",
        orders: str = "both",
        adaptive_threshold: float = 0.2,
        layout: str = "auto",
        token_budget: int | None = None,
        max_tokens: int | None = None,
        unit_rows: int = 2_000,
        logits: bool = False,
        columns: Columns | Mapping[str, str] | None = None,
    ):
        self.columns = columns_of(columns)
        for name, value in (("precision", precision), ("orders", orders), ("layout", layout)):
            check_choice(name, value, choices_of(name))
        config = ScoreConfig(
            model=folders_of(model),
            model_weights=tuple(model_weights),
            base=folders_of(base),
            input=("(memory)",),
            output="(memory)",
            orders=orders,  # pyright: ignore[reportArgumentType]  # checked above
            adaptive_threshold=adaptive_threshold,
            precision=precision,  # pyright: ignore[reportArgumentType]
            layout=layout,  # pyright: ignore[reportArgumentType]
            token_budget=token_budget,
            max_tokens=max_tokens,
            unit_rows=unit_rows,
            logits=logits,
        )
        self.unit_rows = unit_rows
        self.lock = threading.Lock()
        self.on_share: Callable[[float], None] = ignore
        self.replica: Replica | None = load_replica(config, device_of(device), self.report_progress)

    def compare(self, prompt: str, response_a: str, response_b: str) -> Comparison:
        """Which of two responses wins.

        Raises:
            DataError: a text is none. ModelError: the pair cannot be scored, and why.
        """
        pair = read_pair_rows([dict(zip(TEXTS, (prompt, response_a, response_b), strict=True))], Columns())
        if pair.errors_N[0]:
            raise DataError(pair.errors_N[0])
        (row,) = self.predict(pair, shown=False).to_pylist()
        if row["error"]:
            raise ModelError(row["error"])
        return Comparison(**{name: row[name] for name in Comparison.__dataclass_fields__})

    def score(self, rows: Any, *, progress: bool | None = None) -> pd.DataFrame:
        """A row of predictions for every row given, in the same order.

        Args:
            rows: a pandas or polars DataFrame, an Arrow table, a data set of `datasets`, or an iterable of
                dicts or of (prompt, response_a, response_b). An iterable is read whole.
            progress: show a bar; by default in a terminal or notebook.

        Returns:
            `id` where the input has one, `prob_a`, `winner`, `prob_a_ab`, `prob_a_ba`, `tokens`,
            `cut_tokens` and `error`, which says why a row has no probability. The index is that of the frame
            given.

        Raises:
            DataError: the input is of no kind that can be read, or lacks a column.
            ModelError: all rows failed for the same reason.
        """
        pairs = read_pair_rows(rows, self.columns)
        shown = in_terminal() or in_notebook() if progress is None else progress
        frame = self.predict(pairs, shown=shown).drop_columns("id").to_pandas()
        frame.index = pairs.index
        if pairs.ids is not None:
            frame.insert(0, "id", pairs.ids.to_numpy() if pairs.ids.dtype == object else pairs.ids.array)
        return frame

    def predict(self, pairs: PairRows, *, shown: bool) -> pa.Table:
        """The rows of a predictions file; `id` is the row's number."""
        tables = []
        with self.lock, tqdm(total=len(pairs), unit="pair", disable=not shown, file=sys.stderr) as bar:
            if self.replica is None:
                raise ConfigError("this Judge is closed; make another")
            for start in range(0, len(pairs), self.unit_rows):
                rows = range(len(pairs))[start : start + self.unit_rows]

                def show(share: float, rows: range = rows) -> None:
                    bar.update(rows.start + int(share * len(rows)) - bar.n)

                self.on_share = show
                tables.append(score_unit(self.replica, pairs, rows))
                self.on_share(1.0)
            self.on_share = ignore
        return pa.concat_tables(tables or [predictions_schema(pa.int64()).empty_table()])

    def report_progress(self, number: int, share: float, tokens: int) -> None:
        """Move the bar as micro-batches of a unit are done."""
        self.on_share(share)

    def close(self) -> None:
        """Free the memory of the models; nothing can be scored afterwards."""
        with self.lock:
            self.replica = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ignore(share: float) -> None:
    """Show nothing."""


def score_unit(replica: Replica, pairs: PairRows, rows: range) -> pa.Table:
    """The rows of a predictions file for some of the pairs; `id` is the row's number."""
    part = slice(rows.start, rows.stop)
    texts = {name: pairs.texts[name][part] for name in TEXTS}
    encoded = encode_texts(pa.array(rows, pa.int64()), texts, pairs.errors_N[part], replica.options.models)
    try:
        return replica.score(encoded)[0]
    except DeviceLostError as error:
        raise ClusterError(
            f"the GPU was lost ({error}); start this process, or the notebook's kernel, anew"
        ) from error


def load_replica(config: ScoreConfig, device: str, report_progress: ReportProgress) -> Replica:
    """The models of a config, ready to score on a device."""
    on_gpu = device == "cuda"
    models = check_models(config, on_gpu, None)
    replica = Replica(
        ReplicaOptions(
            models=models,
            output=config.output,
            id_type=pa.int64(),
            orders=config.orders,
            layout=fastest_layout(models, on_gpu) if config.layout == "auto" else config.layout,
            token_budget=config.token_budget,
            logits=config.logits,
            threads=None,
            adaptive_threshold=config.adaptive_threshold,
            model_weights=config.model_weights,
            device=device,
            report_progress=report_progress,
        )
    )
    if replica.failure:
        raise unpack_error(replica.failure)
    return replica


def device_of(device: str) -> str:
    check_choice("device", device, ("auto", "cuda", "cpu"))
    there = default_device()
    if device == "cuda" and there != "cuda":
        raise ConfigError("device='cuda': no GPU is visible to this process; use auto or cpu")
    return there if device == "auto" else device


def folders_of(given: Folder | Sequence[Folder]) -> tuple[str, ...]:
    """One folder or several as paths."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    return tuple(os.fspath(folder) for folder in several)


def columns_of(given: Columns | Mapping[str, str] | None) -> Columns:
    if isinstance(given, Mapping):
        for name in given:
            check_choice("columns", name, tuple(Columns.__dataclass_fields__))
        return Columns(**given)
    return given or Columns()


def choices_of(option: str) -> tuple[str, ...]:
    """The values that an option of `score` takes."""
    hint = get_type_hints(ScoreConfig)[option]
    nested = ((part,) if isinstance(part, str) else get_args(part) for part in get_args(hint))
    return tuple(choice for part in nested for choice in part)


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{option}={value!r}: must be one of {', '.join(choices)}")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules
