"""One step of one simulated Hopf network of 80 regions: ours in a batch, against neurolib's compiled loop.

    python tests/benchmarks/brain.py --peer-python PYTHON

PYTHON is that of an environment with ``pip install --no-deps neurolib==0.6.2`` and ``pip install numba``. Both sides
take the same connectome and turns; the table has medians. A step is not the same thing on both sides: ours turns
exactly, 10 times a volume (72 ms), and neurolib's is Euler's with 0.1 ms; both have noise and the cubic term. What is
compared is what a step costs, not what is done with it.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import table
import torch

from recnb import brain
from recnb import brain_models as models

PEER = """
import importlib.util, sys, time, types
import numpy as np
root = importlib.util.find_spec("neurolib").submodule_search_locations[0]
for name in ("", ".models", ".models.hopf", ".utils"):  # their own __init__ import all that neurolib needs
    module = sys.modules["neurolib" + name] = types.ModuleType("neurolib" + name)
    module.__path__ = [root + name.replace(".", "/")]
from neurolib.models.hopf import loadDefaultParams, timeIntegration
weights = np.load(sys.argv[1])
given = loadDefaultParams.loadDefaultParams(Cmat=weights, Dmat=np.zeros_like(weights), seed=0)
given.K_gl = 0.6
for given.duration in (100, 4000):  # the first compiles
    began = time.perf_counter()
    found = timeIntegration.timeIntegration(given)
    seconds = time.perf_counter() - began
assert np.isfinite(found[1]).all()
print(seconds / (given.duration / given.dt) * 1e6)
"""


def ours(sc: torch.Tensor, batch: int, volumes: int) -> float:
    """Microseconds of a step of one simulation in a batch."""
    runs = torch.full((batch,), 0.6)
    began = time.perf_counter()
    models.hopf(sc, runs, volumes=volumes, burn=0)
    return (time.perf_counter() - began) / (10 * volumes * batch) * 1e6


def main() -> None:
    """Run the comparison and write its rows into the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", required=True, help="python of an environment that has neurolib 0.6.2")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sc = brain.load().sc[:1]
    costs: dict[str, list[float]] = {"peer": [], "128": [], "1": []}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "sc.npy", sc[0].numpy())
        for _ in range(options.repeat):
            told = subprocess.check_output([options.peer_python, "-c", PEER, f"{folder}/sc.npy"], text=True)
            costs["peer"].append(float(told))
            costs["128"].append(ours(sc, 128, 200))
            costs["1"].append(ours(sc, 1, 1000))
    peer = float(np.median(costs["peer"]))
    rows = []
    for batch in ("128", "1"):
        mine = float(np.median(costs[batch]))
        task = f"Digital twin brain: a step of a simulation of 80 Hopf oscillators, {batch} at once"
        rows.append([task, f"{mine:.3g}", f"{peer:.3g}", "neurolib 0.6.2", "us", f"{peer / mine:.2f}"])
    command = f"brain.py --peer-python PYTHON --repeat {options.repeat} --threads {options.threads}"
    table.write(rows, "Digital twin brain:", options.threads, command)


if __name__ == "__main__":
    main()
