"""Train one sequential recommender of RecBole 1.2.1, unchanged, on a split that we supply.

RecBole needs an environment of its own (`python3.11 -m venv peer`), with
    pip install torch==2.13.0 numpy pandas scipy pyyaml scikit-learn tqdm texttable psutil
    pip install colorama==0.4.4 colorlog==4.7.2 && pip install --no-deps recbole==1.2.1

The split: int64 `user` (0..), `item` (0..1681), `order` (place in the user's sequence), one entry
per event; the last is for testing, the one before for validation. Results: `log.jsonl`, `done.json`
and `best.npz`: scores `valid` and `test` (users x items) at the best validation NDCG@10.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

ITEMS, MAX_LEN, TOP_K, PATIENCE = 1682, 50, 10, 10
SETTINGS = {  # all that departs from RecBole's defaults, or that we rely on
    "eval_args": dict(split={"LS": "valid_and_test"}, group_by="user", order="TO", mode="full"),
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": MAX_LEN,
    "train_neg_sample_args": None, "loss_type": "CE", "embedding_size": 64,
    "use_gpu": False, "checkpoint_dir": tempfile.gettempdir(),
    "topk": [TOP_K], "valid_metric": f"NDCG@{TOP_K}", "stopping_step": PATIENCE,
}  # fmt: skip
DROPOUTS = ("dropout_prob", "hidden_dropout_prob", "attn_dropout_prob")


def make_importable() -> None:
    """Restore what today's packages dropped; stand in for what is imported but never used here."""
    vars(np).update(float_=np.float64, complex_=np.complex128, unicode_=np.str_)
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    sys.modules.update(dict.fromkeys(("ray", "ray.tune", "torch.utils.tensorboard"), MagicMock()))


def read_split(path: Path) -> list[np.ndarray]:
    """Return each user's items in order, users ascending."""
    with np.load(path) as split:
        user, item, order = split["user"], split["item"], split["order"]
    by_time = np.lexsort((order, user))
    sequences = np.split(item[by_time], np.cumsum(np.bincount(user))[:-1])
    assert (order[by_time] == np.concatenate([np.arange(len(s)) for s in sequences])).all()
    assert (np.unique(item) == np.arange(ITEMS)).all() and min(map(len, sequences)) >= 4
    return sequences


def build(args: argparse.Namespace, sequences: list[np.ndarray], folder: Path) -> tuple:
    """Write RecBole's text file; return its config, loaders, trainer, and its ids of ours."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    (folder / "split").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    lines = (f"{u}\t{i}\t{at}\n" for u, items in enumerate(sequences) for at, i in enumerate(items))
    (folder / "split" / "split.inter").write_text(header + "".join(lines))
    settings = SETTINGS | {"seed": args.seed, "train_batch_size": args.batch, "data_path": folder}
    settings |= {name: args.dropout for name in DROPOUTS if args.dropout is not None}
    config = Config(model=args.model, dataset="split", config_dict=settings)
    init_seed(args.seed, config["reproducibility"])
    dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    model = get_model(args.model)(config, dataset)
    trainer = get_trainer(config["MODEL_TYPE"], args.model)(config, model)
    users = dataset.token2id("user_id", [str(user) for user in range(len(sequences))])
    items = dataset.token2id("item_id", [str(item) for item in range(ITEMS)])
    for held, loader in zip((2, 1), loaders[1:], strict=True):  # exactly our histories and targets
        names = ("user_id", "item_id", "item_length", "item_id_list")
        columns = zip(*(loader.dataset.inter_feat[name].tolist() for name in names), strict=True)
        asked = [(user, [*past[:size], target]) for user, target, size, past in columns]
        ours = [items[s[: len(s) - held + 1][-MAX_LEN - 1 :]].tolist() for s in sequences]
        assert sorted(asked) == sorted(zip(users.tolist(), ours, strict=True))
    assert len(loaders[0].dataset) == sum(len(sequence) - 3 for sequence in sequences)
    return config, loaders, trainer, users, items


@torch.no_grad()
def score(model: Any, loader: Any, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the float32 scores, users x items, in our numbering."""
    model.eval()
    table = np.full((len(users) + 1, ITEMS), np.nan, dtype=np.float32)
    for batch, *_ in loader:
        table[batch["user_id"].numpy()] = model.full_sort_predict(batch).numpy()[:, items]
    assert np.isfinite(table[users]).all()
    return table[users]


def valid_ndcg(scores: np.ndarray, sequences: list[np.ndarray]) -> float:
    """Return NDCG@10 of the validation targets, ties against us; strikes the training items out."""
    for row, sequence in zip(scores, sequences, strict=True):
        row[np.setdiff1d(sequence[:-2], sequence[-2])] = -np.inf
    target = scores[np.arange(len(scores)), [sequence[-2] for sequence in sequences]]
    rank = (scores >= target[:, None]).sum(axis=1)
    return float(np.where(rank <= TOP_K, 1 / np.log2(rank + 1), 0).mean())


def train(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train until patience or budget runs out; return the facts of the run."""
    sequences = read_split(args.split)
    config, loaders, trainer, users, items = build(args, sequences, folder)
    epoch, wall, cpu, best, best_epoch, stopped = 0, 0.0, 0.0, -1.0, 0, ""
    with open(args.out / "log.jsonl", "w", buffering=1) as log:
        while not stopped:
            wall_0, cpu_0 = time.perf_counter(), time.process_time()
            loss = trainer._train_epoch(loaders[0], epoch)
            wall, cpu = wall + time.perf_counter() - wall_0, cpu + time.process_time() - cpu_0
            epoch += 1
            valid, test = (score(trainer.model, loader, users, items) for loader in loaders[1:])
            if (ndcg := valid_ndcg(valid.copy(), sequences)) > best:
                best, best_epoch = ndcg, epoch
                np.savez(args.out / "best.tmp.npz", valid=valid, test=test, epoch=epoch)
                os.replace(args.out / "best.tmp.npz", args.out / "best.npz")
            late = epoch - best_epoch >= PATIENCE
            stopped = "patience" if late else "budget" if wall > args.seconds else ""
            facts = {"epoch": epoch, "train_wall_s": wall, "train_cpu_s": cpu, "loss": loss}
            facts |= {"valid_ndcg10": ndcg, "best_epoch": best_epoch, "stopped": stopped}
            log.write(json.dumps(facts) + "\n")
    return facts | {"best_valid_ndcg10": best, "config": config.final_config_dict}


def main() -> None:
    """Read the command line, run, and write `done.json`."""
    parser = argparse.ArgumentParser(description="Train one RecBole model on our split.")
    parser.add_argument("--model", choices="SASRec GRU4Rec Caser NextItNet".split(), required=True)
    for name, kind in {"split": Path, "out": Path, "seconds": float, "threads": int}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)  # seconds of training at most
    for name, kind, default in (("seed", int, 0), ("batch", int, 512), ("dropout", float, None)):
        parser.add_argument(f"--{name}", type=kind, default=default)  # None: the model's own
    args = parser.parse_args()
    sys.argv[1:] = []  # RecBole would read it too
    make_importable()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "done.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        facts = train(args, Path(folder)) | {"arguments": vars(args), "python": sys.version}
    facts["versions"] = {n: version(n) for n in ("recbole", "torch", "numpy", "pandas", "scipy")}
    (args.out / "done.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
