"""The runs behind notebook 04: their plans, what each answered case by case, and the trained models that ship.

    python -m recnb.llara_study --only curriculum text-only --workers 2

trains what the store lacks and writes outcomes, curves and weights into the package's folder ``trained``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from recnb import data, llm, metrics, runs
from recnb.data import Cases
from recnb.llara import Llara
from recnb.llara_training import CANDIDATES, Plan, trained
from recnb.prompts import TEMPLATES, Prompt, PromptBuilder
from recnb.store import plain
from recnb.study import WINDOW, Study
from recnb.study import load as load_study
from recnb.training import Progress

SHIPPED = Path(__file__).parent / "trained"
_BASE = Plan()
_NO_WARM: dict[str, Any] = dict(match_rows=0, repeat_rows=0, nearest_rows=0)


def _model(**changes: Any) -> Any:
    return replace(_BASE.model, **changes)


def plans(rows: int = 256, nearest: int = _BASE.nearest_rows, text_extra: int = 1000) -> dict[str, Plan]:
    """Every run of the ablation, by name.

    Args:
        rows: prompts in the last stage of each.
        nearest: prompts in the last warm start of those that have one.
        text_extra: further prompts for runs without warm start, about what its tokens would have paid for.
    """
    base = replace(_BASE, rows=rows, nearest_rows=nearest)
    plain_rows: dict[str, Any] = dict(rows=rows + text_extra, **_NO_WARM)
    return {
        "curriculum": base,
        "direct": replace(base, strategy="direct"),
        "two-stage": replace(base, strategy="two-stage"),
        "reversed": replace(base, strategy="reversed"),
        "resetting": replace(base, strategy="resetting"),
        "text-only": replace(base, strategy="text", **plain_rows),
        "ID-only": replace(base, strategy="direct", model=_model(kind="id")),
        "numerical index": replace(base, strategy="direct", model=_model(kind="index", listwise=0.0), **plain_rows),
        "shuffled vectors": replace(base, shuffled=True),
        "GRU4Rec": replace(base, backbone="GRU4Rec"),
        "Caser": replace(base, backbone="Caser"),
        "higher rate": replace(base, lr=2.5 * base.lr),
        "slot after title": replace(base, model=_model(slot_first=False)),
        "random projector": replace(base, model=_model(isometric=False)),
        "as published": replace(base, model=_model(slot_first=False, isometric=False, listwise=0.0), **plain_rows),
    }


def questions(study: Study, part: str, each: int | None = None, draw: int = 0) -> tuple[Cases, np.ndarray]:
    """Cases and their candidate table.

    Args:
        study: the data.
        part: "valid" or "test" asks for each held-out user's last item, with the stored table; "prefixes" asks for
            items at all places of the test users.
        each: prefixes a user, at most.
        draw: seed of the candidates; 0 is the stored table.
    """
    if part == "prefixes":
        cases = study.prefixes("test", each)
        return cases, data.draw_candidates(cases, study.dataset.n_items, CANDIDATES, draw)
    cases = getattr(study.split, part)
    table = data.candidates(study.dataset, study.split, part, CANDIDATES, draw)
    return cases, table


def written(
    study: Study, model: Llara, plan: Plan, cases: Cases, table: np.ndarray
) -> tuple[PromptBuilder, list[Prompt]]:
    """The prompts that a model is asked, one a case, the phrasings in turn; and what wrote them."""
    builder = study.builder(model.lm.tokenizer, plan.model.slot_first)
    rows = enumerate(zip(cases.history, table, cases.target, strict=True))
    kind, phrasings = plan.model.kind, len(TEMPLATES)
    return builder, [builder.build(kind, h[-WINDOW:], c, int(t), i % phrasings) for i, (h, c, t) in rows]


def ask(
    study: Study,
    model: Llara,
    plan: Plan,
    cases: Cases,
    table: np.ndarray,
    greedy: bool = True,
    likelihood: bool = True,
) -> pd.DataFrame:
    """What a model answers, case by case.

    Returns:
        one row a case: ``user``, ``target``, ``answer`` (generated line), ``exact`` and ``published`` (candidate that
        it names by either rule, -1 for none), ``place`` (of the target), ``likely`` (candidate of highest
        likelihood). Columns that were not asked for are absent.
    """
    builder, prompts = written(study, model, plan, cases, table)
    kind = plan.model.kind
    found: dict[str, Any] = {"user": cases.user, "target": cases.target, "place": [p.place for p in prompts]}
    if greedy:
        found["answer"] = model.answer(prompts, builder.end[0], plan.blank)
        for rule in ("exact", "published"):
            found[rule] = [
                metrics.chosen(said, [builder.spoken(int(item), kind) for item in p.candidates], rule == "exact")
                for said, p in zip(found["answer"], prompts, strict=True)
            ]
    if likelihood:
        found["likely"] = model.likelihoods(prompts, plan.blank).argmax(1)
    return pd.DataFrame(found)


def folder_of(study: Study, name: str, seed: int) -> Path:
    """Where a run's outcomes, curve and weights are kept."""
    return SHIPPED / study.dataset.name / f"{name.replace(' ', '-')}.{seed}"


@dataclass(frozen=True)
class Asked:
    """What a run is asked besides the test users' own questions, by likelihood alone.

    Attributes:
        each: prefixes of each test user.
        draws: further draws of the test questions' candidates.
        wide: prefixes of each test user in a larger set, for runs that stand alone.
    """

    each: int = 2
    draws: int = 0
    wide: int = 0

    def sets(self, study: Study) -> dict[str, tuple[Cases, np.ndarray]]:
        """Cases and candidates of each set that is not empty: "prefixes", "wide", "draw 1", "draw 2", ..."""
        found = {f"draw {draw}": questions(study, "test", draw=draw) for draw in range(1, self.draws + 1)}
        sizes = {"prefixes": self.each, "wide": self.wide}
        return {name: questions(study, "prefixes", size) for name, size in sizes.items() if size} | found


def run(name: str, plan: Plan, asked: Asked, dataset: str, threads: int) -> None:
    """Train one plan, ask it the test users' questions, and write what came out."""
    torch.set_num_threads(threads)
    study = load_study(dataset)
    began = time.monotonic()

    def report(now: Progress) -> None:
        print(f"{name} seed {plan.seed}: {now.epoch}/{now.epochs} loss {now.loss:.3f} {now.seconds:.0f} s", flush=True)

    model, curve = trained(study, plan, report)
    seconds = float(curve.groupby("stage")["seconds"].max().sum())
    folder = folder_of(study, name, plan.seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.weights()
    save_file(weights, folder / "model.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})  # what ships is what is asked
    answers = [ask(study, model, plan, *questions(study, "test")).assign(asked="test")]
    for what, (cases, table) in asked.sets(study).items():
        answers.append(ask(study, model, plan, cases, table, greedy=False).assign(asked=what))
    # Not the data themselves, which may not be handed on: who was asked is drawn again from them.
    told = pd.concat(answers, ignore_index=True).drop(columns=["user", "target"])
    told.to_parquet(folder / "answers.parquet")
    curve.to_parquet(folder / "curve.parquet")
    about = {"name": name, "plan": plain(plan), **vars(asked), "seconds": round(seconds)}
    runs.describe(folder, "llara_study", threads, about)
    print(name, plan.seed, "done in", round(time.monotonic() - began), "s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, several at a time."""
    known = plans()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(known), choices=list(known), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--nearest", type=int, default=_BASE.nearest_rows, help="prompts of the last warm start")
    parser.add_argument("--each", type=int, default=2, help="prefixes of each test user")
    parser.add_argument("--draws", type=int, default=0, help="further draws of the test users' candidates")
    parser.add_argument("--wide", type=int, default=0, help="prefixes of each test user in a second, larger set")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", help="keep the one run of --only under this name")
    given = parser.parse_args(arguments)
    if given.name and len(given.only) != 1:
        parser.error(f"--name {given.name!r} is for one run; --only names {len(given.only)}")
    sized = plans(given.rows, given.nearest)
    jobs = [(name, replace(sized[name], seed=seed)) for seed in given.seeds for name in given.only]
    asked = Asked(given.each, given.draws, given.wide)
    runs.side_by_side(run, [(given.name or name, plan, asked, given.dataset) for name, plan in jobs], given.workers)


def shipped(study: Study, name: str, seed: int = 0) -> tuple[Llara, Plan]:
    """A trained model that came with the package.

    Raises:
        FileNotFoundError: when there is none of that name, with the names there are.
    """
    about, stored = runs.kept(folder_of(study, name, seed), "trained model")
    told = about["plan"]
    plan = Plan(**{**told, "model": type(_BASE.model)(**told["model"])})
    weights = {key: value.float() for key, value in stored.items()}
    model = Llara(llm.load(plan.lm), weights["items"], plan.model)
    model.load_state_dict(weights)
    return model.eval(), plan


if __name__ == "__main__":
    main()
