"""Time to reach RecBole's accuracy, and accuracy itself, on the same split with the same metric code.

Needs an environment of its own for RecBole 1.2.1 (see ``recbole_peer.py`` for how to make one):

    python tests/benchmarks/backbones.py --peer-python PEER/bin/python --seconds 3000

Both sides run with the same number of threads, one after the other; our time is the slowest of our seeds.
Times are CPU seconds of training alone (evaluation excluded), which a busy machine disturbs least. The peer stops by
its own patience or by ``--seconds``; the table says which. ``--peer-runs`` keeps the peer's results, and reads them
again when they are already there. Rows go to ``figures/benchmarks.csv``, in place of the
same model's earlier ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import table
import torch

from recnb import backbones, data, datasets, metrics, recommenders, training


def peer_run(model: str, split_file: Path, options: argparse.Namespace) -> tuple[dict, list[dict], dict]:
    """Run RecBole, or read its finished run: what it was, its log by epoch, its scores at the best epoch."""
    folder = options.peer_runs / model
    if not (folder / "done.json").exists():
        command = [options.peer_python, str(Path(__file__).with_name("recbole_peer.py"))]
        command += ["--model", model, "--split", str(split_file), "--out", str(folder)]
        command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
        if model == "SASRec":  # its default of .5 is far too high for MovieLens
            command += ["--dropout", "0.2"]
        subprocess.run(command, check=True)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    with np.load(folder / "best.npz") as best:
        return (json.loads((folder / "done.json").read_text()), log, {key: best[key] for key in best.files})


def our_run(model: str, split: data.Split, seed: int) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Train ours; returns (training CPU seconds, validation NDCG@10) by epoch, and test scores at the best."""
    recipe = recommenders.recipe(model, seed=seed)
    training.seed_all(seed)
    network = backbones.build(split.n_items, recipe.model)
    score, curve, evaluating = recommenders.validation_score(split), [], 0.0
    began = time.process_time()

    def evaluate(trained: torch.nn.Module) -> float:
        nonlocal evaluating
        entered = time.process_time()
        value = score(trained)
        curve.append((entered - began - evaluating, value))
        evaluating += time.process_time() - entered
        return value

    training.fit(
        network,
        lambda epoch, rng: recommenders.sequence_batches(split, recipe, rng),
        replace(recipe.train, eval_every=1),
        evaluate,
    )
    return curve, recommenders.score(network, split.test)


def reached(curve: list[tuple[float, float]], goal: float) -> float:
    """Seconds until the curve first reaches the goal; infinite when it never does."""
    return next((seconds for seconds, value in curve if value >= goal), float("inf"))


def compare(model: str, split: data.Split, split_file: Path, options: argparse.Namespace) -> list[list]:
    """Both sides on one model; returns rows for the table."""
    runs = [our_run(model, split, seed) for seed in options.seeds]
    done, log, best = peer_run(model, split_file, options)
    top = max(log, key=lambda row: row["valid_ndcg10"])
    goal, peer_seconds = top["valid_ndcg10"], top["train_cpu_s"]
    seconds = [reached(curve, goal) for curve, _ in runs]
    note = f"stopped by {done['stopped']} after {len(log)} epochs"
    epoch = np.mean([curve[-1][0] / len(curve) for curve, _ in runs])
    peer_epoch = log[-1]["train_cpu_s"] / len(log)
    rows = [
        [f"{model}: train to the peer's best validation NDCG@10 {goal:.4f} (peer {note})",
         round(max(seconds), 1), round(peer_seconds, 1), "CPU s", round(peer_seconds / max(seconds), 1)],
        [f"{model}: one epoch of training", round(epoch, 2), round(peer_epoch, 1), "CPU s",
         round(peer_epoch / epoch, 1)],
    ]  # fmt: skip
    target = split.test.target
    for mode, seen in (("filtered", split.test.history), ("kept", None)):
        ours = np.stack([metrics.ranks(scores, target, seen).ndcg(10) for _, scores in runs])
        peer = metrics.ranks(best["test"], target, seen).ndcg(10)
        gap = metrics.paired(ours, peer)
        task = f"{model}: test NDCG@10, seen {mode}; difference {gap} ({len(runs)} seeds; peer {note})"
        a, b = float(ours.mean()), float(peer.mean())
        rows.append([task, round(a, 4), round(b, 4), "NDCG@10", round(a / b, 2)])
    return rows


def main() -> None:
    """Run the comparison and write its rows into figures/benchmarks.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="python of an environment that has RecBole 1.2.1")
    parser.add_argument("--peer-runs", type=Path, default=Path("runs/peer"))
    parser.add_argument("--models", nargs="+", default=["SASRec", "GRU4Rec", "Caser"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=3000, help="the peer's training budget a model")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # Large buffers are then reused and not returned to the system after every step, on both sides alike.
    if os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "4294967296") and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "4294967296"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(options.threads)
    films = datasets.load("ml-100k")
    split = data.leave_one_out(films)
    options.peer_runs.mkdir(parents=True, exist_ok=True)
    split_file = options.peer_runs / "split.npz"
    order = np.concatenate([np.arange(len(sequence)) for sequence in films.sequences()])
    events = films.events
    np.savez(split_file, user=events["user"].to_numpy(), item=events["item"].to_numpy(), order=order)
    command = f"backbones.py --models {' '.join(options.models)} --seconds {options.seconds:.0f}"
    for model in options.models:
        rows = [[*row[:3], "RecBole 1.2.1", *row[3:]] for row in compare(model, split, split_file, options)]
        table.write(rows, f"{model}:", options.threads, command)


if __name__ == "__main__":
    main()
