"""The optimizer steps of one worker, with or without others. Torch, no Ray.

A step: encode its rows, cut them into passes, run this worker's share, add up all workers' gradients, step.
Every worker holds the same weights and takes the same step. Dropout is seeded by (seed, step, pass), so
neither a restart nor another number of workers changes it, as long as the passes are the same.
"""

import json
import resource
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from wsdm_ray.config import OptimizerConfig, TrainConfig
from wsdm_ray.data.mixing import read_teachers, sample_weights
from wsdm_ray.data.votes import Votes
from wsdm_ray.errors import WsdmRayError
from wsdm_ray.modeling.adapter_io import load_adapter_weights
from wsdm_ray.modeling.attention import supports_varlen
from wsdm_ray.modeling.checkpoint import save_classifier
from wsdm_ray.modeling.classifier import (
    add_lora,
    compile_layers,
    load_network,
    model_config,
    ordering_logits,
    preference_log_odds,
    trainable_parameters,
)
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.precision import device_and_dtype
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import batch_tokens, pair_tokens, plan_batches, plan_batches_at_least
from wsdm_ray.packing.ragged import Ragged
from wsdm_ray.schema import orderings_of
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder
from wsdm_ray.training.batches import assign_batches, num_steps, step_rows
from wsdm_ray.training.objective import (
    agreement,
    cross_entropy,
    disagreement,
    distillation,
    learning_rate_factor,
    smoothed,
    targets_of,
    valid_metrics,
)
from wsdm_ray.training.tracking import METRICS

__all__ = ["STATE", "STATE_TENSORS", "Trainer", "TrainingDivergedError"]

STATE_TENSORS = "optimizer.safetensors"
STATE = "trainer_state.json"


COMPILED_STEPS = 100
"""The fewest steps of a run that are worth the minute or more that compiling takes."""
SPIKE_STEPS = 50
"""Steps whose median loss says what a spike is; the first of a run are not judged until there are 10."""
SPIKE_FLOOR = 3.0
"""Nats that are no spike whatever is usual: a model that is nearly always right is sometimes quite wrong."""
SPIKE_SEQUENCES = 8
"""The fewest sequences of a step that tell a spike from one surprising vote."""


class TrainingDivergedError(WsdmRayError, RuntimeError):
    """A loss, a gradient or weights are not finite, or a loss stands far above those before it."""


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, encoded and cut into passes."""

    rows: np.ndarray
    pairs: EncodedPairs
    passes: list[np.ndarray]
    costs: list[int]


class Trainer:
    """One worker's network, optimizer and place in the run.

    Args:
        base: local folder of the base model.
        manifest: what the checkpoints will say of themselves, but metrics.
    """

    def __init__(self, config: TrainConfig, base: str, manifest: Manifest, train: Votes, valid: Votes | None):
        self.config, self.base, self.manifest, self.train, self.valid = config, base, manifest, train, valid
        self.weights_N = sample_weights(train.sources_N, config.objective.source_weights)
        self.teacher_N = read_teachers(config.objective.teachers, train.table["id"])
        self.rank, self.num_workers = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        self.device, dtype = device_and_dtype(config.precision)
        fastest = fastest_layout(base, self.device, dtype)
        self.layout = fastest if config.layout == "auto" else config.layout
        self.sides = tuple(int(ordering) for ordering in orderings_of(config.orders))
        self.encoder = PairEncoder(base, config.text)
        network = load_network(
            base,
            config.head,
            seed=config.seed,
            device=self.device,
            dtype=dtype,
            quantization=manifest.quantization,
        )
        if manifest.quantization == "bnb-int8" and not config.int8_activations:
            from wsdm_ray.modeling.weight_only_int8 import use_weight_only_int8

            network = use_weight_only_int8(network)
        if config.gradient_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
        self.network = add_lora(network, config.lora, config.seed)
        self.parameters = trainable_parameters(self.network)
        self.optimizer = make_optimizer(config.optimizer, self.parameters)
        self.total_steps = num_steps(len(train), config.pairs_per_step, config.epochs, config.max_steps)
        gains = self.layout == fastest == "packed" and self.total_steps >= COMPILED_STEPS
        compiles = config.compile == "yes" or (config.compile == "auto" and gains)
        if compiles:
            compile_layers(self.network)
        self.resolved = {
            "layout": self.layout, "precision": {torch.bfloat16: "bf16"}.get(dtype, "fp32"),
            "quantization": manifest.quantization, "compile": "yes" if compiles else "no",
        }  # fmt: skip
        """What the options say whose value is `auto`, on this machine."""
        self.step = 0
        self.metrics: list[dict[str, Any]] = []

    def steps(self) -> Iterator[dict[str, Any]]:
        """Take the steps that are left; yields the metrics of each, the same on every worker."""
        with ThreadPoolExecutor(1) as pool:  # the next step is encoded while this one runs
            coming: Future[Step] = pool.submit(self.prepare, self.step)
            while self.step < self.total_steps:
                step = coming.result()
                if self.step + 1 < self.total_steps:
                    coming = pool.submit(self.prepare, self.step + 1)
                metrics = self.take(step)
                self.metrics.append(metrics)
                yield metrics

    def prepare(self, number: int) -> Step:
        rows = step_rows(self.config.seed, number, len(self.train), self.config.pairs_per_step)
        pairs = self.encoder.encode(*self.train.texts(rows))
        tokens = pair_tokens(self.layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, len(self.sides))
        passes = plan_batches_at_least(
            self.layout,
            tokens,
            self.config.token_budget,
            self.config.micro_batches or self.num_workers,
        )
        return Step(rows, pairs, passes, [batch_tokens(self.layout, tokens[each]) for each in passes])

    def take(self, step: Step) -> dict[str, Any]:
        """One optimizer step."""
        started = time.monotonic()
        self.network.train()
        count = len(step.rows) * len(self.sides)
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, right orderings, tokens
        row_losses: list[tuple[np.ndarray, torch.Tensor]] = []
        for number in assign_batches(step.costs, self.num_workers)[self.rank]:
            torch.manual_seed(seed_of(self.config.seed, self.step, number))
            layout = lay_out(self.layout, step.pairs.prefix, self.suffixes(step.pairs), step.passes[number])
            log_odds = preference_log_odds(ordering_logits(self.network, layout))
            loss_S, right = self.loss(log_odds, step.rows[step.passes[number]])
            (loss_S.sum() / count).backward()
            totals[0] += loss_S.detach().sum() / count  # no wait for the GPU
            row_losses.append((step.passes[number], loss_S.detach().view(-1, len(self.sides)).sum(-1)))
            totals[1] += right
            totals[2] += layout.num_tokens
        options = self.config.optimizer
        factor = learning_rate_factor(self.step, self.total_steps, options.warmup_fraction, options.schedule)
        loss, right, tokens = self.all_reduce_gradients(totals)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), options.max_grad_norm))
        weight = float(self.weights_N[step.rows].mean())
        self.check_health(loss, weight, norm, step.rows, row_losses)
        rates = (options.learning_rate, options.head_learning_rate or options.learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.monotonic() - started
        return {
            "step": self.step, "loss": loss, "weight": weight, "accuracy": right / count,
            "learning_rate": options.learning_rate * factor, "grad_norm": norm,
            "pairs": len(step.rows), "tokens": int(tokens), "seconds": seconds,
            "padding_share": 1 - tokens / sum(step.costs), "memory_gb": memory_gb(self.device),
            "pairs_per_second": len(step.rows) / seconds, "tokens_per_second": tokens / seconds,
        }  # fmt: skip

    def loss(self, log_odds_S: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each ordering of one pass, float32 [S], and how many are right: soft labels in part.

        The sum is the formula of `objective`, times S.

        Args:
            log_odds_S: that the first response wins, pair by pair.
            rows: of the train set, one a pair (int64 [P]).
        """
        options = self.config.objective

        def of_orderings(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(targets_of(values, self.sides)).to(self.device)

        weight_S = torch.from_numpy(self.weights_N[rows]).float().to(self.device)
        weight_S = weight_S.repeat_interleave(len(self.sides))
        target_S = of_orderings(self.train.prob_a_N[rows])
        each_S = cross_entropy(log_odds_S, smoothed(target_S, options.label_smoothing))
        if options.teachers:
            teacher_S = of_orderings(self.teacher_N[rows])
            known_S = ~teacher_S.isnan()
            taught_S = distillation(log_odds_S, teacher_S.nan_to_num(0.5), options.teacher_temperature)
            share_S = options.teacher_weight * known_S
            each_S = (1 - share_S) * each_S + share_S * taught_S
        if options.swap_consistency_weight:
            apart_P = disagreement(log_odds_S.view(-1, 2))
            each_S = each_S + options.swap_consistency_weight * apart_P.repeat_interleave(2)
        return weight_S * each_S, agreement(log_odds_S, target_S).sum()

    def check_health(
        self,
        loss: float,
        weight: float,
        norm: float,
        rows: np.ndarray,
        row_losses: list[tuple[np.ndarray, torch.Tensor]],
    ) -> None:
        """Raise `TrainingDivergedError` before a step is taken that would spoil the weights.

        Args:
            weight: mean weight of the step's rows: a step of heavy rows has a large loss without being wrong.
            row_losses: of this worker's passes: places in `rows`, and the loss of each.
        """
        before = [row["loss"] / row["weight"] for row in self.metrics[-SPIKE_STEPS:] if row["weight"]]
        usual = float(np.median(before)) if len(before) >= 10 else float("inf")
        finite = bool(np.isfinite([loss, norm]).all())
        judged = bool(weight) and len(rows) * len(self.sides) >= SPIKE_SEQUENCES
        if finite and not (judged and loss / weight > max(self.config.loss_spike * usual, SPIKE_FLOOR)):
            return
        what = f"is {loss / weight:.3g} where {usual:.3g} is usual" if finite else f"{loss}"
        loss_N = torch.zeros(len(rows), device=self.device)
        for places, losses in row_losses:
            loss_N[torch.from_numpy(places)] = losses
        if self.num_workers > 1:  # all of them are here: what they judge by is summed up over all
            dist.all_reduce(loss_N)
        worst = np.argsort(-np.nan_to_num(loss_N.cpu().numpy(), nan=np.inf), kind="stable")[:5]
        ids = self.train.table["id"].take(rows[worst]).to_pylist()
        on = ", or go on from there with a larger --loss-spike" if finite else ""
        raise TrainingDivergedError(
            f"step {self.step + 1}: loss {what}, gradient norm {norm:.3g}; "
            f"of its {len(rows)} rows the worst are {ids}; {self.kept_until(self.step)}; "
            "look at these rows, then lower --optimizer.learning-rate and start over with "
            f"--restart{on}"
        )

    def kept_until(self, step: int) -> str:
        """What there is to go on from: `evaluate` lets no checkpoint pass that is not good."""
        good = step // self.config.checkpoint_steps * self.config.checkpoint_steps
        return f"the last good checkpoint is that of step {good}" if good else "there is no checkpoint yet"

    def suffixes(self, pairs: EncodedPairs) -> list[Ragged]:
        return [(pairs.suffix_ab, pairs.suffix_ba)[side] for side in self.sides]

    def all_reduce_gradients(self, totals: torch.Tensor) -> list[float]:
        """Add up gradients and totals over all workers, in place; returns the totals."""
        parameters = list(self.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:  # this worker had no pass
                parameter.grad = torch.zeros_like(parameter)
        if self.num_workers > 1:
            flat = torch.cat(
                [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
            )
            dist.all_reduce(flat)
            offset = 0
            for parameter in parameters:
                part = flat[offset : offset + parameter.numel()].view_as(parameter)
                parameter.grad = part.to(parameter.dtype)  # a head in bfloat16 beside float32 adapters
                offset += parameter.numel()
            dist.all_reduce(totals)
        return totals.tolist()

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Metrics over the whole valid set, each worker scoring its share; the same on every worker.

        Raises:
            TrainingDivergedError: the weights are not finite, or what they make of the valid set is not.
        """
        if spoilt := int(sum((~parameter.isfinite()).sum() for parameter in self.parameters.values())):
            raise self.diverged(f"{spoilt:,} weights are not finite")
        if self.valid is None:
            return {}
        self.network.eval()
        pairs = self.encoder.encode(*self.valid.texts(np.arange(len(self.valid))))
        tokens = pair_tokens(self.layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, len(self.sides))
        passes = plan_batches(self.layout, tokens, self.config.token_budget)
        costs = [batch_tokens(self.layout, tokens[each]) for each in passes]
        log_odds = torch.zeros(len(pairs), len(self.sides), dtype=torch.float64)
        sign = torch.tensor([1.0 if side == 0 else -1.0 for side in self.sides])
        for number in assign_batches(costs, self.num_workers)[self.rank]:
            layout = lay_out(self.layout, pairs.prefix, self.suffixes(pairs), passes[number])
            found = preference_log_odds(ordering_logits(self.network, layout)).view(-1, len(self.sides)).cpu()
            log_odds[torch.from_numpy(passes[number])] = (found * sign).double()
        if self.num_workers > 1:
            log_odds = log_odds.to(self.device)
            dist.all_reduce(log_odds)
        if unknown := int((~log_odds.isfinite()).any(1).sum()):
            raise self.diverged(f"{unknown:,} of {len(log_odds):,} rows of the valid set have no finite loss")
        return {
            f"valid_{name}": value
            for name, value in valid_metrics(log_odds.cpu().numpy(), self.valid.prob_a_N).items()
        }

    def diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"after step {self.step}: {what}; {self.kept_until(self.step - 1)}; "
            "lower --optimizer.learning-rate and start over with --restart"
        )

    def save(self, folder: str, metrics: dict[str, Any]) -> None:
        """Write a checkpoint from which `restore` goes on exactly, and which `score` can load."""
        manifest = Manifest(**{**vars(self.manifest), "metrics": {"step": self.step, **metrics}})
        save_classifier(self.network, self.base, folder, manifest)
        tensors, numbers = flatten(self.optimizer.state_dict())
        save_file(tensors, Path(folder) / STATE_TENSORS)
        (Path(folder) / STATE).write_text(json.dumps({"step": self.step, "optimizer": numbers}))
        (Path(folder) / METRICS).write_text("".join(json.dumps(row) + "\n" for row in self.metrics))

    def restore(self, folder: str) -> None:
        """Go on from a checkpoint of `save`."""
        load_adapter_weights(self.network, folder)
        state = json.loads((Path(folder) / STATE).read_text())
        self.optimizer.load_state_dict(unflatten(load_file(Path(folder) / STATE_TENSORS), state["optimizer"]))
        self.step = state["step"]
        self.metrics = [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]


def fastest_layout(base: str, device: str, dtype: torch.dtype) -> str:
    """`packed` where attention by bounds is fast: dense masks of a packed row cost the square of its length,
    GPUs have it in 16 bits alone, and CPUs like short passes best.
    """
    fast = device == "cuda" and dtype != torch.float32 and supports_varlen(model_config(base))
    return "packed" if fast else "padded"


def make_optimizer(options: OptimizerConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over `parameters`: in one group, or the head's in a second where it has a rate of its own."""
    groups = [list(parameters.values())]
    if options.head_learning_rate is not None:
        head = [parameter for name, parameter in parameters.items() if ".score." in name]
        groups = [[parameter for name, parameter in parameters.items() if ".score." not in name], head]
    given: list[dict[str, Any]] = [{"params": group} for group in groups]
    arguments: dict[str, Any] = {
        "lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay,
    }  # fmt: skip
    if options.kind == "adamw_8bit":
        import bitsandbytes.optim

        return bitsandbytes.optim.AdamW8bit(given, **arguments)  # pyright: ignore[reportPrivateImportUsage]
    return torch.optim.AdamW(given, **arguments)


def memory_gb(device: str) -> float:
    """The most memory that this process has held so far: of the GPU where it has one, else of the machine."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def seed_of(seed: int, step: int, number: int) -> int:
    """A seed for the dropout of one pass."""
    return int(np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)[0] >> 1)


def flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by path, and the rest as JSON values: safetensors holds no others."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}

    def walk(path: str, values: dict[Any, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):  # bitsandbytes keeps its 8-bit tensors a level deeper
                walk(f"{path}{name}/", value)
            elif isinstance(value, torch.Tensor):
                tensors[f"{path}{name}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers[f"{path}{name}"] = value

    walk("", state["state"])
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def unflatten(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **rest["numbers"]}.items():
        index, *parents, name = path.split("/")
        place = state.setdefault(int(index), {})
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
