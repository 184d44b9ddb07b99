import os
import signal
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
import torch
from torch import nn

from recnb.training import TrainConfig, fit

RUN = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from recnb import data, datasets, recommenders
    from recnb.backbones import BackboneConfig
    from recnb.recommenders import Recipe
    from recnb.training import TrainConfig
    split = data.leave_one_out(datasets.load())
    some = split.valid.take(range(60))
    split = data.Split("some", split.n_items, split.train[:60], split.times[:60], some, split.test)
    recipe = Recipe(BackboneConfig("SASRec"), TrainConfig(epochs=12, patience=0), tokens=1024)
    def report(now):
        print(now.epoch, flush=True)
        time.sleep(float(sys.argv[2]))
    model, done = recommenders.train(split, recipe, Path("run.checkpoint"), report)
    save_file(model.state_dict(), sys.argv[1])
    print(done.best_epoch, len(done.curve))
""")


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    command = [sys.executable, "-c", RUN]
    whole = tmp_path / "whole"
    whole.mkdir()
    subprocess.run([*command, "weights", "0"], cwd=whole, check=True, stdout=subprocess.DEVNULL)
    cut = subprocess.Popen([*command, "weights", "0.8"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for line in cut.stdout:
        if int(line) >= 5 and (tmp_path / "run.checkpoint").exists():
            break
    os.kill(cut.pid, signal.SIGKILL)
    cut.wait()
    assert not (tmp_path / "weights").exists()
    rest = subprocess.run([*command, "weights", "0"], cwd=tmp_path, check=True, capture_output=True, text=True)
    epochs = [int(line) for line in rest.stdout.split("\n")[:-2]]
    assert epochs[0] > 1, "it must go on, not start over"
    assert (tmp_path / "weights").read_bytes() == (whole / "weights").read_bytes()
    assert not (tmp_path / "run.checkpoint").exists()


TOGETHER = textwrap.dedent("""
    import time
    from recnb import data, datasets, recommenders
    from recnb.backbones import BackboneConfig
    from recnb.recommenders import Recipe
    from recnb.training import TrainConfig
    if __name__ == "__main__":
        films = datasets.load()
        split = data.first_users(data.leave_one_out(films), 60)
        recipes = [Recipe(BackboneConfig("Caser"), TrainConfig(epochs=60, patience=0, seed=s)) for s in (0, 1)]
        reports = [lambda now: print(now.epoch, flush=True)] * 2
        recommenders.trained_all(films, split, recipes, reports, workers=2)
""")


def test_an_interrupt_ends_all_processes_at_once_and_the_rerun_goes_on(tmp_path, own_store):
    (tmp_path / "together.py").write_text(TOGETHER)
    command = [sys.executable, "together.py"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kept = own_store / "store" / "backbone"
    for _ in run.stdout:
        if kept.exists() and len(list(kept.glob("*.checkpoint"))) == 2:
            break
    began = time.monotonic()
    run.send_signal(signal.SIGINT)  # to the parent alone, as Jupyter does
    run.communicate(timeout=30)
    assert run.returncode != 0 and time.monotonic() - began < 15
    rest = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    epochs = [int(line) for line in rest.stdout.split()]
    assert min(epochs) > 1 and epochs.count(60) == 2
    assert not list(kept.glob("*.checkpoint"))


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return ((self.slope * x - 3 * x) ** 2).mean()


def draw(epoch, rng):
    return [{"x": torch.from_numpy(rng.normal(size=8)).float()} for _ in range(20)]


def test_the_best_weights_are_kept_and_patience_stops():
    model = Slope()
    config = TrainConfig(epochs=50, lr=0.1, patience=3)
    done = fit(model, draw, config, evaluate=lambda m: -abs(float(m.slope) - 1))
    assert done.stopped == "patience"
    assert len(done.curve) == done.best_epoch + 3
    assert done.best == done.curve["score"].max()
    assert -abs(float(model.slope) - 1) == pytest.approx(done.best)


def test_learning_rate_warms_up():
    done = [
        fit(m := Slope(), lambda epoch, rng: draw(epoch, rng)[:1], TrainConfig(1, 0.1, warmup=w)) and m for w in (0, 10)
    ]
    assert abs(float(done[0].slope)) == pytest.approx(10 * abs(float(done[1].slope)), rel=1e-3)


def test_accumulated_batches_step_as_one_large_batch():
    def doubled(epoch, rng):
        small = draw(epoch, rng)
        return [{"x": torch.cat([a["x"], b["x"]])} for a, b in zip(small[::2], small[1::2], strict=True)]

    fit(two := Slope(), draw, TrainConfig(2, 0.1, accumulate=2))
    fit(one := Slope(), doubled, TrainConfig(2, 0.1))
    assert float(two.slope) == pytest.approx(float(one.slope), rel=1e-5)
    fit(rest := Slope(), draw, TrainConfig(1, 0.01, accumulate=8))  # 8, 8 and the last 4: three steps
    assert float(rest.slope) == pytest.approx(0.03, rel=0.05)


def test_the_cosine_ends_at_its_floor():
    fit(low := Slope(), draw, TrainConfig(2, 0.1, decay=True))
    fit(high := Slope(), draw, TrainConfig(2, 0.1, decay=True, floor=1.0))
    fit(flat := Slope(), draw, TrainConfig(2, 0.1))
    assert float(high.slope) == float(flat.slope) != float(low.slope)


def test_a_loss_that_is_not_finite_stops_with_advice():
    model = Slope()
    nn.init.constant_(model.slope, float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1; try a smaller lr"):
        fit(model, draw, TrainConfig(epochs=2))


def test_a_damaged_checkpoint_is_started_over(tmp_path):
    path = tmp_path / "run.checkpoint"
    path.write_bytes(b"half a file")
    done = fit(Slope(), draw, TrainConfig(epochs=2), checkpoint=path)
    assert isinstance(done.curve, pd.DataFrame) and len(done.curve) == 2


def test_progress_knows_its_eta():
    told = []
    fit(Slope(), draw, TrainConfig(epochs=3), report=lambda now: told.append((now.epoch, now.eta)))
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert told[-1][1] == 0
