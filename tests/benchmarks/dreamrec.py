"""DreamRec against its authors' program: the same rows, settings, epochs and one thread each, in one run.

    python tests/benchmarks/dreamrec.py --peer FOLDER --dataset ml-100k

FOLDER is a checkout of the authors' repository. Its program is run unchanged; only the function that counts its hits is
wrapped, to keep what it was given. It tells seconds an epoch and seconds of asking validation and test cases by itself.
Ours is timed on the same numbers of epochs and cases. Rows go to ``figures/benchmarks.csv`` in place of earlier ones.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import table
import torch

from recnb import backbones, data, dreamrec_study, dreamrec_training, metrics, training
from recnb.data import Cases, Split
from recnb.dreamrec import DreamRec, Sampling, Sequences
from recnb.dreamrec_training import STRONG, WINDOW, Plan

WRAPPED = """
import runpy, sys
import numpy as np
import utility
count, kept = utility.calculate_hit, []
def keep(ranked, topk, targets, *rest):
    kept.append(np.column_stack([ranked[:, -20:], np.asarray(targets)]))
    np.save("kept.npy", np.concatenate(kept))
    return count(ranked, topk, targets, *rest)
utility.calculate_hit = keep
sys.argv = ["DreamRec.py", *sys.argv[1:]]
runpy.run_path("DreamRec.py", run_name="__main__")
"""


def rows(cases: Cases, pad: int) -> pd.DataFrame:
    """Cases in the authors' form; an empty history counts one padding item."""
    items, length = cases.padded(WINDOW, pad)
    return pd.DataFrame({"seq": items.tolist(), "len_seq": np.maximum(length, 1), "next": cases.target})


def peer_run(split: Split, plan: Plan, options: argparse.Namespace) -> tuple[float, float, np.ndarray]:
    """Seconds an epoch, seconds of one evaluation of both parts, and test rows (n, 21): first 20 and target."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("DreamRec.py", "utility.py", "Modules_ori.py"):
            (work / name).write_text((options.peer / name).read_text())
        there = work / "data" / "bench"
        there.mkdir(parents=True)
        train = data.prefixes(split.train, np.arange(len(split.train)), 0, WINDOW)
        for name, cases in (("train", train), ("val", split.valid), ("test", split.test)):
            rows(cases, split.n_items).to_pickle(there / f"{name}_data.df")
        pd.DataFrame({"seq_size": [WINDOW], "item_num": [split.n_items]}).to_pickle(there / "data_statis.df")
        model = plan.model
        flags = f"--data bench --timesteps {model.steps} --lr {plan.train.lr} --beta_sche {model.schedule} "
        flags += f"--w {plan.how.w} --optimizer adamw --diffuser_type mlp1 --epoch {options.epochs}"
        done = subprocess.run(
            [sys.executable, "-c", WRAPPED, *flags.split()],
            cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        kept = np.load(work / "kept.npy")[-(len(split.test) // 100 * 100) :]

    def seconds(words: str) -> list[float]:
        found = re.findall(words + r": (\d+): (\d+): (\d+)", done.stdout)
        return [3600.0 * int(h) + 60 * int(m) + int(s) for h, m, s in found]

    return float(np.mean(seconds("Time cost"))), seconds("Evalution cost")[-1], kept


def our_run(split: Split, plan: Plan, epochs: int) -> tuple[float, float, float, np.ndarray, Cases]:
    """Seconds: an epoch, all steps for both parts, closed form for both; test scores as published, and their cases."""
    training.seed_all(plan.train.seed)
    model = dreamrec_training.fresh(None, split, plan)  # type: ignore[arg-type]  # the faithful track reads no log
    assert isinstance(model, DreamRec)
    train = replace(plan.train, epochs=epochs, eval_every=epochs)
    fit = training.fit(model, dreamrec_training.batches(split, plan), train)
    began = time.perf_counter()
    dreamrec_training.score_as_published(model, split.valid, Sampling(plan.how.w))
    scores, asked = dreamrec_training.score_as_published(model, split.test, Sampling(plan.how.w))
    walked = time.perf_counter() - began
    began = time.perf_counter()
    for cases in (split.valid, split.test):
        dreamrec_training.score(model, cases, Sampling(plan.how.w, mean=True))
    folded = time.perf_counter() - began
    return float(fit.curve["seconds"].iloc[-1]) / epochs, walked, folded, scores, asked


def quick(split: Split) -> tuple[float, float, float]:
    """Seconds of the strong track, untrained, which takes as long as trained.

    Returns:
        answering both parts in ten steps; then generating the test part's oracles in ten steps, and in all T.
    """
    begun = data.started(split)
    backbone = backbones.build(begun.n_items, STRONG.encoder.model)  # type: ignore[union-attr]
    model = DreamRec(Sequences(backbone), STRONG.model)
    began = time.perf_counter()
    for cases in (begun.valid, begun.test):
        dreamrec_training.score(model, cases, STRONG.how)
    answered, h, walks = time.perf_counter() - began, dreamrec_training.states(model, begun.test), []
    for how in (STRONG.how, replace(STRONG.how, few=None)):
        began = time.perf_counter()
        model.oracle(h, how, torch.Generator().manual_seed(0))
        walks.append(time.perf_counter() - began)
    return answered, walks[0], walks[1]


def main() -> None:
    """Run the comparison and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="checkout of the authors' repository")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--epochs", type=int, default=10, help="a multiple of 10: the peer asks every tenth epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log, split = dreamrec_study.load_split(options.dataset)
    plan = dreamrec_study.Sitting(log, split, 0).plans["faithful"]
    peer_epoch, peer_asks, kept = peer_run(split, plan, options)
    runs = [our_run(split, dreamrec_training.seeded(plan, seed), options.epochs) for seed in range(3)]
    hits = [metrics.ranks(scores, asked.target).hit_rate(20) for *_, scores, asked in runs]
    peer_hits = (kept[:, :20] == kept[:, 20:]).any(1).astype(float)
    unknown = (split.popularity() == 0)[kept[:, 20]]
    ours_unknown = float(np.mean([hit[unknown].sum() / max(hit.sum(), 1) for hit in hits]))
    peer_unknown = peer_hits[unknown].sum() / max(peer_hits.sum(), 1)
    gap = metrics.paired(np.stack(hits), peer_hits, runs[0][-1].user)
    epoch, asks, folds = (float(np.median([one[i] for one in runs])) for i in range(3))
    soon, few, every = quick(split)
    name, after = f"DreamRec on {options.dataset}", f"after {options.epochs} epochs, as published"
    found = [
        [f"{name}: one epoch of the published recipe", round(epoch, 2), round(peer_epoch, 1), "s", peer_epoch / epoch],
        [f"{name}: all T steps for every validation and test case", round(asks, 1), peer_asks, "s", peer_asks / asks],
        [f"{name}: the same cases, ours in closed form", round(folds, 1), peer_asks, "s", peer_asks / folds],
        [f"{name}: the same cases, ours in ten steps (strong track)", round(soon, 1), peer_asks, "s", peer_asks / soon],
        [f"{name}: HR@20 {after}; difference {gap}, 3 seeds", round(float(np.mean(hits)), 4),
         round(peer_hits.mean(), 4), "HR@20", np.mean(hits) / max(peer_hits.mean(), 1e-9)],
        [f"{name}: share of those hits on items never trained", round(ours_unknown, 3), round(peer_unknown, 3), "share",
         float("nan")],  # neither more nor less is better
        [f"{name}: oracles of the test cases in ten steps, peer: our own {STRONG.model.steps} (strong track)",
         round(few, 2), round(every, 1), "s", every / few],
    ]  # fmt: skip
    versions = [*["DreamRec 454133c"] * (len(found) - 1), "recnb"]
    ratios = ["–" if np.isnan(row[4]) else str(round(row[4], 2)) for row in found]
    lines = [[*row[:3], version, row[3], ratio] for row, version, ratio in zip(found, versions, ratios, strict=True)]
    command = f"dreamrec.py --peer FOLDER --dataset {options.dataset} --epochs {options.epochs}"
    table.write(lines, f"{name}:", 1, command)


if __name__ == "__main__":
    main()
