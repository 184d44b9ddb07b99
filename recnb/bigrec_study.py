"""The runs behind notebook 05: what every tuned model says, what it is grounded to, and the recommenders beside it.

    python -m recnb.bigrec_study --only "1024 rows" --seeds 0 1 2

Answers, ranks and weights are written into the package's folder ``trained``; never the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from recnb import backbones, data, datasets, floors, metrics, runs
from recnb.bigrec import BigRec, BigRecConfig, Catalogue, Instructions
from recnb.bigrec_ranking import as_columns, grounding, ranked, rival
from recnb.bigrec_training import Plan, drawn, fresh, recent, trained
from recnb.data import Cases
from recnb.store import plain
from recnb.study import Study
from recnb.training import Progress

SHIPPED = Path(__file__).parent / "trained" / "bigrec"
ASKED = {"valid": 150, "test": 500}  # cases of a run, at most; the paper draws 5,000
PASSES = {16: 8, 64: 4, 256: 2, 1024: 2, 4096: 1, 16384: 1, 72456: 1}  # by rows; the paper's few-shot runs have 1,024
BATCH = {16384: 16, 72456: 64}  # for about 1,000 steps each; 72,456 is all rows
SIZES = {r: Plan(r, passes, batch=BATCH.get(r, 4), micro=BATCH.get(r, 4)) for r, passes in PASSES.items()}
PLANS = {f"{rows} rows": plan for rows, plan in SIZES.items()} | {
    "untuned": Plan(0, 0),
    "256 rows, answers only": Plan(256, PASSES[256], model=BigRecConfig(whole=False)),
    "256 rows, queries and values": Plan(256, PASSES[256], model=BigRecConfig(targets=("q_proj", "v_proj"))),
}
RIVALS = (*floors.FLOORS, *(name for name in backbones.NAMES if name != "NextItNet"))


def load(dataset: str = "ml-100k", tie_seed: int | None = 0) -> Study:
    """BIGRec's split of a dataset: windows in order of time, or the publisher's own split where there is one."""
    log = datasets.load(dataset, tie_seed)
    return Study(log, data.published(log) if "part" in log.events else data.temporal_windows(log))


def asked(study: Study, part: str, count: int | None = None) -> Cases:
    """Cases of "valid" or "test" with ten items of history, drawn once for every run; fewer are the first of them."""
    return drawn(recent(getattr(study.split, part)), count or ASKED[part], 0)


def say(model: BigRec, write: Instructions, cases: Cases, beams: int = 4) -> list[list[str]]:
    """What a model says to each case, its likeliest answer first."""
    questions = [write.ids(write.question(history)) for history in cases.history]
    return model.say(questions, write.end, beams)


def folder_of(study: Study, name: str, seed: int) -> Path:
    """Where a run's answers, ranks and weights are kept."""
    return SHIPPED / study.dataset.name / f"{name.replace(',', '').replace(' ', '-')}.{seed}"


def run(name: str, seed: int, beams: int, keep: bool, dataset: str, threads: int) -> None:
    """Train one plan, let it answer, ground its answers, and write what came out."""
    torch.set_num_threads(threads)
    study, plan = load(dataset), replace(PLANS[name], seed=seed)

    def report(now: Progress) -> None:
        told = f"{name} {seed}: {now.epoch}/{now.epochs} {now.loss:.3f} {now.score:.3f} {now.seconds:.0f} s"
        print(told, flush=True)

    model, write, curve = trained(study, plan, report) if plan.rows else (*fresh(study, plan), pd.DataFrame())
    folder = folder_of(study, name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in weights.items()})  # what ships is what is asked
    if keep:
        save_file(weights, folder / "model.safetensors")
    cases = {part: asked(study, part) for part in ASKED}
    said = {part: say(model, write, some, beams) for part, some in cases.items()}
    scores = {part: rival(study, "SASRec", some) for part, some in cases.items()}
    ranks, gammas = ranked(study, said, cases, grounding(write.catalogue.names, lm=plan.lm), scores)
    ranks.to_parquet(folder / "ranks.parquet")
    frames = [pd.DataFrame({"asked": part, "said": lines}) for part, lines in said.items()]
    pd.concat(frames, ignore_index=True).to_parquet(folder / "answers.parquet")
    curve.to_parquet(folder / "curve.parquet")
    about = {"name": name, "plan": plain(plan), "beams": beams, "gammas": gammas, "end": write.end}
    about["seconds"] = float(curve["seconds"].max()) if plan.rows else 0.0
    runs.describe(folder, "bigrec_study", threads, about)
    print(name, seed, metrics_of(ranks), gammas, flush=True)


def metrics_of(ranks: pd.DataFrame, k: int = 10) -> dict[str, float]:
    """NDCG@k of every method, for the log."""
    groups = ranks.groupby("method", sort=False)
    return {str(name): round(float(placed(rows).ndcg(k).mean()), 4) for name, rows in groups}


def placed(rows: pd.DataFrame) -> metrics.Ranks:
    """A method's rows of a table of ranks as `metrics.Ranks`."""
    return metrics.Ranks(rows["above"].to_numpy(), rows["tied"].to_numpy())


def run_rivals(rows: int | None, seed: int, dataset: str, threads: int) -> None:
    """Every recommender on the same rows: ranks of the same test cases."""
    torch.set_num_threads(threads)
    study = load(dataset)
    cases, of_item = asked(study, "test"), Catalogue(study.dataset).of_item
    frames = []
    for name in RIVALS:
        scores = rival(study, name, cases, rows, seed)
        frames.append(as_columns(metrics.ranks(scores, of_item[cases.target]), name))
        print(rows, seed, name, metrics_of(frames[-1]), flush=True)
    folder = folder_of(study, f"rivals {rows or 'all'} rows", seed)
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(frames, ignore_index=True).to_parquet(folder / "ranks.parquet")
    runs.describe(folder, "bigrec_study", threads, {"rows": rows, "seed": seed})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(PLANS), choices=list(PLANS), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rivals", action="store_true", help="the recommenders instead, on all sizes of --only's runs")
    parser.add_argument("--keep", action="store_true", help="keep the weights, to ship them")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.rivals:
        sizes = [*dict.fromkeys(PLANS[name].rows for name in given.only if PLANS[name].rows), None]
        jobs = [(rows, seed, given.dataset) for seed in given.seeds for rows in sizes]
        return runs.side_by_side(run_rivals, jobs, given.workers)
    rest = (given.beams, given.keep, given.dataset)
    runs.side_by_side(run, [(name, seed, *rest) for seed in given.seeds for name in given.only], given.workers)


def shipped(study: Study, name: str, seed: int = 0) -> tuple[BigRec, Instructions]:
    """A tuned model that came with the package, with what writes its prompts.

    Raises:
        FileNotFoundError: when there is none of that name, with the names there are.
    """
    about, weights = runs.kept(folder_of(study, name, seed), "tuned model")
    told = about["plan"]
    config = BigRecConfig(**{**told["model"], "targets": tuple(told["model"]["targets"])})
    model, write = fresh(study, Plan(**{**told, "model": config}))
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    write.end = about["end"]  # the token that it learnt to end with
    return model.eval(), write


if __name__ == "__main__":
    main()
