"""RecInterpreter's answers, against `generate` of plain transformers on the same model, prompts, batches and precision.

    python tests/benchmarks/interpreter.py

Each side answers in a process of its own, which tells seconds and peak resident memory; the two take turns, and the
table has medians. The peer reads every prompt from its first word; ours reads what prompts share once. Loading is not
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import table
import torch
import transformers

from recnb import assets, interpreter_study, llm, runner, study

LIMIT, BATCH = 24, 64


@torch.no_grad()
def answer(side: str, count: int) -> dict[str, object]:
    """What one side says to residual questions of test people, seconds, and peak memory in MB."""
    data = study.load()
    model, reader = interpreter_study.shipped(data, "residual, difference")
    asked = interpreter_study.asked(data, 1)
    states = reader.states(asked.cases, asked.removed)[:count]
    written = reader.questions(reader.answers(asked.cases, asked.removed)[:count], np.zeros(count))
    rows, end = model.rows(written, model.read(states)), reader.book.end[0]
    if side == "ours":
        began = time.perf_counter()
        lines = llm.generate(model.lm, rows, end, LIMIT, BATCH, model.prefix(written))
    else:
        folder, lines = assets.fetch(llm.DEFAULT), []
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=llm.precision()).eval()
        options = dict(max_new_tokens=LIMIT, do_sample=False, eos_token_id=end, pad_token_id=end)
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            embeds = torch.stack(rows[start : start + BATCH])
            tokens = peer.generate(
                inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), **options
            )
            lines += [line.strip() for line in model.lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    seconds = time.perf_counter() - began
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {"seconds": seconds, "peak": int(peak[1]) / 1024, "lines": lines}  # type: ignore[index]


def main() -> None:
    """Run the comparison and write its rows into the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=64, help="questions, at most 95")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        return print(json.dumps(answer(options.side, options.count)))
    told: dict[str, list[dict]] = {"ours": [], "peer": []}
    for turn in range(options.repeat):
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            given = f"--side {side} --count {options.count} --threads {options.threads}".split()
            env = {**runner.KERNEL_ENV, **os.environ}
            out = subprocess.check_output([sys.executable, __file__, *given], env=env, text=True)
            told[side].append(json.loads(out.splitlines()[-1]))
    same = np.mean([a == b for a, b in zip(told["ours"][0]["lines"], told["peer"][0]["lines"], strict=True)])
    assert same > 0.9, f"only {same:.2f} of the answers agree"
    rows = []
    tasks = ((f"{options.count} answers", "seconds", "s", 2), ("peak memory of them", "peak", "MB", None))
    for task, key, unit, digits in tasks:
        ours, peer = (float(np.median([run[key] for run in told[side]])) for side in ("ours", "peer"))
        values = [str(round(value, digits)) for value in (ours, peer)]
        version = f"transformers {transformers.__version__}"
        rows.append([f"RecInterpreter: {task}", *values, version, unit, f"{peer / ours:.2f}"])
    command = f"interpreter.py --count {options.count} --repeat {options.repeat}"
    table.write(rows, "RecInterpreter:", options.threads, command)


if __name__ == "__main__":
    main()
