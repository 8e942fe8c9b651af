"""The optimizer steps of one worker, with or without others. Torch, no Ray.

A step: encode its rows, cut them into micro-batches, run this worker's share of them, add up all workers'
gradients, update the weights. Every worker holds the same weights and takes the same step. Dropout is seeded
by (seed, step, micro-batch), and sums are exact. So neither a restart nor, with the same `--micro-batches`,
another number of workers changes a bit of it.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsdm_ray.config import TrainConfig
from wsdm_ray.data.length_balance import balance_lengths
from wsdm_ray.data.mixing import read_teachers, sample_weights
from wsdm_ray.data.votes import Votes
from wsdm_ray.errors import ConfigError
from wsdm_ray.modeling.adapter_io import load_adapter_weights
from wsdm_ray.modeling.attention.mask_rule import to_device
from wsdm_ray.modeling.classifier import model_config, preference_log_odds, trainable_parameters
from wsdm_ray.modeling.families import drops_attention, softcap_of
from wsdm_ray.modeling.gpu_memory import peak_memory_bytes
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.memory_errors import is_oom
from wsdm_ray.modeling.precision import device_and_dtype
from wsdm_ray.packing.layouts import Layout, lay_out
from wsdm_ray.packing.plan import batch_tokens, pair_tokens, plan_for_workers
from wsdm_ray.schema import orderings_of
from wsdm_ray.telemetry import logger
from wsdm_ray.text.encoding import EncodedPairs, PairEncoder
from wsdm_ray.training.batches import Batches, dropout_seed, num_steps, step_rows
from wsdm_ray.training.distributed import WorkerGroup, clip_gradients, current_group
from wsdm_ray.training.encode import encode_rows, encode_together, valid_shares
from wsdm_ray.training.gradients import GradientReducer, round_to
from wsdm_ray.training.health import evaluation_error, is_spike, step_error, usual_loss, worst_rows
from wsdm_ray.training.metrics import METRICS_FILE, StepMetrics, ValidMetrics
from wsdm_ray.training.model import prepare_model
from wsdm_ray.training.objective import agreement, learning_rate_factor, row_loss, targets_of, valid_metrics
from wsdm_ray.training.optimizer import make_optimizer, set_learning_rates
from wsdm_ray.training.optimizer_state import flatten_state, load_state
from wsdm_ray.training.policy import resolve_options
from wsdm_ray.training.sharded_optimizer import ShardedOptimizer
from wsdm_ray.training.snapshot import Snapshot, take_snapshot
from wsdm_ray.training.warm_up import warm_up

__all__ = ["BatchSums", "Trainer"]

LOSS_UNIT = 2.0**-32
"""What the losses of micro-batches are multiples of, so that float64 adds them up exactly in any order."""


@dataclass(frozen=True)
class BatchSums:
    """What micro-batches of one step add up to, on the device."""

    totals: torch.Tensor
    """float64 [4]: losses of orderings, right ones, tokens, and 1 where memory ran out."""
    row_losses: list[tuple[np.ndarray, torch.Tensor]]
    """Of each micro-batch: its places in the step, and the loss of each."""


class Trainer:
    """One worker's network, optimizer and place in the run.

    Args:
        base: local folder of the base model.
        manifest: what the checkpoints say of themselves, without metrics.
        group: the workers of the run; by default those of torch.distributed.
    """

    def __init__(
        self, config: TrainConfig, base: str, manifest: Manifest, train: Votes, valid: Votes | None,
        group: WorkerGroup | None = None,
    ):  # fmt: skip
        self.config, self.base, self.manifest, self.train, self.valid = config, base, manifest, train, valid
        self.group = group or current_group()
        weights_N = sample_weights(train.sources_N, config.objective.source_weights)
        self.weights_N = balance_lengths(train, weights_N, config.objective.length_balance)
        self.teacher_N = read_teachers(config.objective.teachers, train.table["id"])
        self.orderings = tuple(int(ordering) for ordering in orderings_of(config.orders))
        self.total_steps = num_steps(len(train), config.pairs_per_step, config.epochs, config.max_steps)
        self.encoder = PairEncoder(base, config.text)
        self.device, dtype = device_and_dtype(config.precision)
        base_config = model_config(base)
        self.resolved = resolve_options(
            config,
            quantization=manifest.quantization,
            device=self.device,
            precision="bf16" if dtype == torch.bfloat16 else "fp32",
            softcapped=softcap_of(base_config) is not None,
            attention_dropout=drops_attention(base_config),
            total_steps=self.total_steps,
        )
        self.layout = self.resolved.layout
        self.model = prepare_model(config, base, self.resolved, self.device, dtype, self.group)
        self.network = self.model.network
        self.memory_ran_out = 0
        """How many times it did so far, in this process."""
        self.parameters = trainable_parameters(self.network)
        self.reducer = GradientReducer(self.group, self.parameters.values())
        shared_by = self.group if config.shard_base else None
        self.optimizer = make_optimizer(config.optimizer, self.parameters, shared_by)
        self.step = 0
        """Steps taken."""
        self.metrics: list[StepMetrics] = []
        self.shares = config.micro_batches or max(config.num_workers, self.group.size)
        """For how many workers a step and the valid set are cut, whoever runs them."""
        self.valid_pairs: list[tuple[np.ndarray, EncodedPairs]] | None = None
        """Of `encode_valid`, once it was asked."""

    def steps(self) -> Iterator[StepMetrics]:
        """Take the steps that are left; yields the metrics of each, the same on every worker."""
        with ThreadPoolExecutor(1) as pool:  # the next step is encoded while this one runs
            upcoming = pool.submit(self.prepare_step, self.step)
            if self.step < self.total_steps:
                pairs = upcoming.result()[1].pairs
                warm_up(self.model, self.tokens_of(pairs), functools.partial(self.lay_out, pairs))
            while self.step < self.total_steps:
                rows, batches = upcoming.result()
                if self.step + 1 < self.total_steps:
                    upcoming = pool.submit(self.prepare_step, self.step + 1)
                metrics = self.train_step(rows, batches)
                self.metrics.append(metrics)
                yield metrics

    def prepare_step(self, step: int) -> tuple[np.ndarray, Batches]:
        """The rows of step `step` (from 0), int64 [n], and their micro-batches."""
        rows = step_rows(self.config.seed, step, len(self.train), self.config.pairs_per_step)
        pairs = encode_together(self.encoder, self.train, rows, self.group)
        return rows, self.plan(pairs, self.shares)

    def plan(self, pairs: EncodedPairs, workers: int = 1) -> Batches:
        """The micro-batches of `pairs`, within the token budget.

        Args:
            workers: which share them.
        """
        tokens = self.tokens_of(pairs)
        budget = self.model.token_budget  # another thread may lower it
        plan = plan_for_workers(self.layout, tokens, budget, workers)
        costs = [self.model.row_tokens(batch_tokens(self.layout, tokens[places])) for places in plan]
        return Batches(pairs, plan, costs, budget)

    def tokens_of(self, pairs: EncodedPairs) -> np.ndarray:
        """Tokens of each pair in the layout, int64 [N]."""
        return pair_tokens(self.layout, pairs.prefix.lengths, pairs.suffix_ab.lengths, len(self.orderings))

    def train_step(self, rows: np.ndarray, batches: Batches) -> StepMetrics:
        """One optimizer step on `rows` (int64 [n]) of the train set."""
        started = time.monotonic()
        batches, sums, norm = self.forward_backward(rows, batches)
        loss, right, tokens, _ = sums.totals.tolist()
        loss /= self.num_sequences(rows)
        grad_norm, options = float(norm), self.config.optimizer
        weight = float(self.weights_N[rows].mean())
        self.check_step(loss, weight, grad_norm, rows, sums)
        factor = learning_rate_factor(self.step, self.total_steps, options.warmup_fraction, options.schedule)
        set_learning_rates(self.optimizer, options, factor)
        self.optimizer.step()
        self.network.zero_grad()
        self.step += 1
        return StepMetrics(
            step=self.step,
            loss=loss,
            weight=weight,
            accuracy=right / self.num_sequences(rows),
            learning_rate=options.learning_rate * factor,
            grad_norm=grad_norm,
            pairs=len(rows),
            tokens=int(tokens),
            seconds=time.monotonic() - started,
            padding_share=1 - tokens / sum(batches.costs),
            memory_gb=peak_memory_bytes(self.device) / 1e9,
        )

    def forward_backward(self, rows: np.ndarray, batches: Batches) -> tuple[Batches, BatchSums, torch.Tensor]:
        """Run the micro-batches of a step on all workers, in less memory where it runs out on any of them.

        Returns:
            The micro-batches that ran, this worker's sums, `totals` and gradients those of all workers, and
            the norm that gradients had before they were clipped.
        """
        max_norm = self.config.optimizer.max_grad_norm
        while True:
            if batches.token_budget > self.model.token_budget:  # planned before memory ran out
                batches = self.plan(batches.pairs, self.shares)
            sums = self.accumulate(rows, batches)
            self.reducer.finish()
            norm = clip_gradients(self.parameters.values(), max_norm)
            if not self.group.all_reduce(sums.totals)[3]:  # the one place of a step where the host waits
                return batches, sums, norm
            self.network.zero_grad()
            self.save_memory(batches)

    def save_memory(self, batches: Batches) -> None:
        """Take less memory from now on: recompute activations first, then halve the token budget.

        Every worker of the group must call it.

        Raises:
            ConfigError: nothing is left that would help.
        """
        most, saved = int(self.tokens_of(batches.pairs).max()), self.model.save_memory()
        if self.group.any(saved, self.device):
            logger.warning("train: all layers recompute their activations now")
        elif self.model.token_budget > most:
            self.model.set_token_budget(max(self.model.token_budget // 2, most))
            logger.warning("train: --token-budget is %d now", self.model.token_budget)
        else:
            raise ConfigError(  # another try would meet the same rows
                f"train: memory ran out; lower --token-budget ({self.model.token_budget}) or "
                "--text.max-tokens, or hold the base in fewer bits (--quantization nf4)"
            )
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def accumulate(self, rows: np.ndarray, batches: Batches) -> BatchSums:
        """Run this worker's micro-batches of a step; where memory runs out, their sums say that alone."""
        try:
            return self.accumulate_all(rows, batches)
        except RuntimeError as error:
            if not is_oom(error):
                raise
            said = str(error).splitlines()[0]
        self.memory_ran_out += 1
        logger.warning("train: memory ran out on worker %d (%s)", self.group.rank, said)
        self.network.zero_grad()
        return BatchSums(torch.tensor([0, 0, 0, 1], dtype=torch.float64, device=self.device), [])

    def accumulate_all(self, rows: np.ndarray, batches: Batches) -> BatchSums:
        """Run this worker's micro-batches of a step; their gradients add up in `reducer`."""
        self.network.train()
        row_losses: list[tuple[np.ndarray, torch.Tensor]] = []
        own = self.group.own_batches(batches.costs)
        with self.model.passes(self.group.most_batches(batches.costs), backward=True):
            totals = torch.zeros(4, dtype=torch.float64, device=self.device)
            for number in own:
                # Beside weights that are gathered, messages would be in an order of each worker's own.
                last = number == own[-1] and not self.config.shard_base
                with self.reducer.backward_pass(last=last):
                    loss_S, right, tokens = self.run_micro_batch(rows, batches, number)
                totals[:2] += round_to(torch.stack([loss_S.sum(), right]).double(), LOSS_UNIT)
                totals[2] += tokens  # no wait for the GPU
                losses = loss_S.view(-1, len(self.orderings)).sum(-1)
                row_losses.append((batches.micro_batches[number], losses))
        return BatchSums(totals, row_losses)

    def run_micro_batch(
        self, rows: np.ndarray, batches: Batches, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a micro-batch forward and backward: the loss of each ordering, how many are right, tokens."""
        torch.manual_seed(dropout_seed(self.config.seed, self.step, number))
        places = batches.micro_batches[number]
        layout = self.lay_out(batches.pairs, places, batches.costs[number])
        log_odds = preference_log_odds(self.model.logits(layout))
        loss_S, right = self.loss(log_odds, rows[places])
        (loss_S.sum() / self.num_sequences(rows)).backward()
        return loss_S.detach(), right, layout.num_tokens

    def num_sequences(self, rows: np.ndarray) -> int:
        return len(rows) * len(self.orderings)

    def lay_out(self, pairs: EncodedPairs, places: np.ndarray, tokens: int) -> Layout:
        """The micro-batch of the pairs at `places`, in a row of so many tokens where the decoder runs it."""
        suffixes = [(pairs.suffix_ab, pairs.suffix_ba)[ordering] for ordering in self.orderings]
        row_tokens = tokens if self.resolved.decoder else 0
        return lay_out(self.layout, pairs.prefix, suffixes, places, row_tokens=row_tokens)

    def loss(self, log_odds_S: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """`row_loss` of a micro-batch of `rows` (int64 [P]), and how many orderings are right, or in part."""

        def of_orderings(values: np.ndarray) -> torch.Tensor:
            return to_device(targets_of(values, self.orderings), self.device)

        weight_S = to_device(self.weights_N[rows].astype(np.float32), self.device)
        target_S = of_orderings(self.train.prob_a_N[rows])
        options = self.config.objective
        teacher_S = of_orderings(self.teacher_N[rows]) if options.teachers else None
        weight_S = weight_S.repeat_interleave(len(self.orderings))
        loss_S = row_loss(log_odds_S, target_S, teacher_S, weight_S, options)
        return loss_S, agreement(log_odds_S, target_S).sum()

    def check_step(
        self, loss: float, weight: float, grad_norm: float, rows: np.ndarray, sums: BatchSums
    ) -> None:
        """Raise `TrainingDivergedError` before a step is taken that would spoil the weights.

        Every worker judges by the same numbers, so all of them raise, or none.
        """
        usual = usual_loss(self.metrics)
        finite = bool(np.isfinite([loss, grad_norm]).all())
        if finite and not is_spike(loss, weight, self.num_sequences(rows), usual, self.config.loss_spike):
            return
        loss_N = torch.zeros(len(rows), device=self.device)
        for places, losses in sums.row_losses:
            loss_N[torch.from_numpy(places)] = losses
        worst = worst_rows(self.group.all_reduce(loss_N).cpu().numpy())
        raise step_error(
            self.step + 1,
            loss=loss,
            weight=weight,
            usual=usual,
            grad_norm=grad_norm,
            num_rows=len(rows),
            worst_ids=self.train.table["id"].take(rows[worst]).to_pylist(),
            checkpoint_steps=self.config.checkpoint_steps,
        )

    def evaluate(self) -> ValidMetrics | None:
        """Metrics over the whole valid set, the same on every worker; None without a valid set.

        Raises:
            TrainingDivergedError: the weights are not finite, or what they make of the valid set is not.
        """
        if spoilt := int(sum((~parameter.isfinite()).sum() for parameter in self.parameters.values())):
            raise self.evaluation_error(f"{spoilt:,} weights are not finite")
        if self.valid is None:
            return None
        log_odds_NO = self.valid_log_odds(self.valid)
        if unknown := int((~log_odds_NO.isfinite()).any(1).sum()):
            raise self.evaluation_error(
                f"{unknown:,} of {len(self.valid):,} rows of the valid set have no finite loss"
            )
        values = valid_metrics(log_odds_NO.numpy(), self.valid.prob_a_N)
        return ValidMetrics(**values)  # pyright: ignore[reportArgumentType]

    def evaluate_step(self) -> StepMetrics:
        """The metrics of the last step with those of the valid set, as `metrics` keeps them from now on."""
        self.metrics[-1] = dataclasses.replace(self.metrics[-1], valid=self.evaluate())
        return self.metrics[-1]

    def evaluation_error(self, problem: str) -> Exception:
        return evaluation_error(self.step, problem, self.config.checkpoint_steps)

    @torch.no_grad()
    def valid_log_odds(self, valid: Votes) -> torch.Tensor:
        """Log-odds of each ordering of each row that the given response_a wins: float64 [N, orderings].

        Each worker scores its shares, which it encodes once in a run.
        """
        self.network.eval()
        plans = [(rows, self.plan(pairs)) for rows, pairs in self.encode_valid(valid)]
        passes = sum(len(plan.costs) for _, plan in plans)
        log_odds_NO = torch.zeros(len(valid), len(self.orderings), dtype=torch.float64)
        sign_O = torch.tensor([1.0 if ordering == 0 else -1.0 for ordering in self.orderings])
        with self.model.passes(self.group.largest(passes, self.device), backward=False):
            for rows, plan in plans:
                for places, tokens in zip(plan.micro_batches, plan.costs, strict=True):
                    logits = self.model.logits(self.lay_out(plan.pairs, places, tokens))
                    log_odds = preference_log_odds(logits).view(-1, len(self.orderings)).cpu()
                    log_odds_NO[torch.from_numpy(rows[places])] = (log_odds * sign_O).double()
        return self.group.all_reduce(log_odds_NO.to(self.device)).cpu()

    def encode_valid(self, valid: Votes) -> list[tuple[np.ndarray, EncodedPairs]]:
        """This worker's shares of `valid`: rows, int64 [n], and their pairs; those of the run's are kept."""
        if valid is not self.valid or self.valid_pairs is None:
            own = valid_shares(valid, self.shares)[self.group.rank :: self.group.size]
            encoded = [(rows, encode_rows(self.encoder, valid, rows)) for rows in own]
            if valid is not self.valid:
                return encoded
            self.valid_pairs = encoded
        return self.valid_pairs

    def save(self, folder: str) -> None:
        """Write a checkpoint from which `restore` continues exactly, and which `score` can load, on the first
        worker. Every worker must call it.
        """
        state = self.optimizer_state()
        if self.group.is_first:
            self.snapshot(state).write(folder)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state on the first worker, as it is now. Every worker must call it."""
        return self.optimizer.state_dict()

    def snapshot(self, optimizer_state: dict[str, Any]) -> Snapshot:
        """What `save` writes, as it is now."""
        state = flatten_state(optimizer_state, copy=not isinstance(self.optimizer, ShardedOptimizer))
        return take_snapshot(
            self.network, self.parameters, state, self.step, self.model.token_budget, self.metrics,
            self.manifest, self.base,
        )  # fmt: skip

    def restore(self, folder: str) -> None:
        """Continue from a checkpoint of `save`."""
        load_adapter_weights(self.network, folder)
        self.step, budget = load_state(self.optimizer, folder)
        self.model.set_token_budget(budget or self.model.token_budget)  # the same micro-batches as before
        lines = (Path(folder) / METRICS_FILE).read_text().splitlines()
        self.metrics = [StepMetrics.from_row(json.loads(line)) for line in lines]
