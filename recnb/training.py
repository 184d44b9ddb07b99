"""One training loop for every model: seeds, device, early stop, checkpoints, and resuming to the same weights.

The contract is small: ``model(**batch)`` returns the loss, and ``batches(epoch, rng)`` yields an epoch's batches,
drawn from the two alone. Every epoch reseeds all generators from (seed, epoch), so a run that was killed and
resumed ends with exactly the weights of one that was not. An epoch may be any part of a longer plan.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batches = Callable[[int, np.random.Generator], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: passes over the data, at most.
        lr: peak learning rate of AdamW.
        weight_decay: decoupled weight decay.
        warmup: optimizer steps over which the learning rate rises from 0.
        decay: let the learning rate fall to ``floor`` along half a cosine, epoch by epoch; ``epochs`` is then the
            plan and not only a limit.
        floor: where the cosine ends, as a share of ``lr``.
        accumulate: batches whose gradients make one optimizer step.
        patience: evaluations without a better score after which training stops; 0 never stops early.
        eval_every: epochs between evaluations.
        clip: largest gradient norm; 0 leaves gradients alone.
        precision: "no", "bf16" or "fp16", as accelerate has it.
        seed: of everything random in the run.
    """

    epochs: int = 100
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    decay: bool = False
    floor: float = 0.0
    accumulate: int = 1
    patience: int = 10
    eval_every: int = 1
    clip: float = 0.0
    precision: str = "no"
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands after an epoch; what a progress display is told.

    Attributes:
        epoch: epochs done.
        epochs: epochs at most.
        seconds: training and evaluation time so far, over all sittings.
        loss: mean training loss of the last epoch.
        score: last evaluation, higher is better; NaN before the first.
        best: best evaluation so far.
    """

    epoch: int
    epochs: int
    seconds: float
    loss: float
    score: float = float("nan")
    best: float = float("-inf")

    @property
    def eta(self) -> float:
        """Seconds left if all epochs are run; early stopping may end sooner."""
        return self.seconds / max(self.epoch, 1) * (self.epochs - self.epoch)


@dataclass
class Fit:
    """Result of `fit`.

    Attributes:
        curve: one row an epoch: ``epoch``, ``loss``, ``score`` (NaN where not evaluated), ``seconds`` so far.
        best_epoch: epoch whose weights the model now has.
        best: its score.
        stopped: "epochs" or "patience".
    """

    curve: pd.DataFrame
    best_epoch: int
    best: float
    stopped: str


@dataclass
class _State:
    """All that a checkpoint holds besides weights and optimizer."""

    epoch: int = 0
    seconds: float = 0.0
    steps: int = 0
    best: float = float("-inf")
    best_epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def seed_all(*seeds: int) -> np.random.Generator:
    """Seed torch from a few integers and return a numpy generator of the same origin."""
    rng = np.random.default_rng(seeds)
    torch.manual_seed(int(rng.integers(2**62)))
    return rng


def fit(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Fit:
    """Train in place and leave the model with its best weights, in evaluation mode.

    Args:
        model: ``model(**batch)`` returns a scalar loss.
        batches: called once an epoch with its number, from 0, and a seeded generator; yields dicts of tensors and
            plain values.
        config: see `TrainConfig`.
        evaluate: score of the model on validation data, higher is better; without it the last epoch is kept.
        checkpoint: file to resume from and to write to, at most every two seconds; removed at the end.
        report: told after each epoch.

    Raises:
        FloatingPointError: when the loss is not finite, with the epoch.
    """
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, config.lr, weight_decay=config.weight_decay)
    ready, optimizer = accelerator.prepare(model, optimizer)
    state = _resume(checkpoint, model, optimizer)
    saved, stopped = time.monotonic(), "epochs"
    while state.epoch < config.epochs:
        if config.patience and _waited(state, config) >= config.patience:
            stopped = "patience"
            break
        began = time.monotonic()
        rng = seed_all(config.seed, state.epoch)
        loss = _epoch(ready, optimizer, batches(state.epoch, rng), config, state, accelerator)
        state.epoch += 1
        row = {"epoch": state.epoch, "loss": loss, "score": float("nan")}
        if evaluate and (state.epoch % config.eval_every == 0 or state.epoch == config.epochs):
            row["score"] = _evaluate(model, evaluate, state)
        state.seconds += time.monotonic() - began
        state.rows.append({**row, "seconds": state.seconds})
        report(Progress(state.epoch, config.epochs, state.seconds, loss, row["score"], state.best))
        if checkpoint and time.monotonic() - saved > 2:
            _save(checkpoint, model, optimizer, state)
            saved = time.monotonic()
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    model.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return Fit(pd.DataFrame(state.rows), state.best_epoch or state.epoch, state.best, stopped)


def _waited(state: _State, config: TrainConfig) -> int:
    """Evaluations since the best one."""
    return (state.epoch - state.best_epoch) // config.eval_every if state.best_weights else 0


def _epoch(model, optimizer, batches, config: TrainConfig, state: _State, accelerator) -> float:
    """One pass over the batches; returns the mean loss."""
    model.train()
    total, count = 0.0, 0
    cosine = (1 + math.cos(math.pi * state.epoch / config.epochs)) / 2
    planned = config.floor + (1 - config.floor) * cosine if config.decay else 1.0
    for batch in batches:
        moved = {k: v.to(accelerator.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        loss = model(**moved)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} in epoch {state.epoch + 1}; try a smaller lr than {config.lr:g}"
            )
        accelerator.backward(loss / config.accumulate)
        total, count = total + float(loss.detach()), count + 1
        if count % config.accumulate == 0:
            _step(model, optimizer, config, planned, state, accelerator)
    if count % config.accumulate:
        _step(model, optimizer, config, planned, state, accelerator)
    return total / max(count, 1)


def _step(model, optimizer, config: TrainConfig, planned: float, state: _State, accelerator) -> None:
    if config.clip:
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
    state.steps += 1
    for group in optimizer.param_groups:
        group["lr"] = config.lr * planned * min(1.0, state.steps / max(config.warmup, 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _evaluate(model: nn.Module, evaluate: Callable[[nn.Module], float], state: _State) -> float:
    model.eval()
    with torch.no_grad():
        score = float(evaluate(model))
    if score > state.best or not state.best_weights:
        state.best, state.best_epoch = score, state.epoch
        state.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return score


def _save(path: Path, model: nn.Module, optimizer, state: _State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    blob = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": vars(state)}
    torch.save(blob, scratch)
    os.replace(scratch, path)


def _resume(path: Path | None, model: nn.Module, optimizer) -> _State:
    """Load a checkpoint if one is there and readable; a damaged one is started over."""
    if path is None or not path.exists():
        return _State()
    try:
        blob = torch.load(path, weights_only=True)
        model.load_state_dict(blob["model"])
        optimizer.load_state_dict(blob["optimizer"])
        return _State(**blob["state"])
    except (RuntimeError, KeyError, ValueError, TypeError, EOFError, OSError):
        path.unlink(missing_ok=True)
        return _State()
