"""BIGRec's four beams and its grounding, against plain transformers with the same model, prompts and precision.

    python tests/benchmarks/bigrec.py

The peer's beam search reads every prompt once a beam; its grounding embeds every answer, batch by batch, as the
published program does. The two take turns; the table has medians. Loading is not timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import table
import torch
import transformers

from recnb import bigrec_ranking, bigrec_results, bigrec_study, llm
from recnb.bigrec import LIMIT, spoken

NAME, BATCH = "16384 rows", 8


def turns(ours: Callable[[], object], peer: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Median seconds of each side."""
    told: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(repeat):
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            began = time.perf_counter()
            (ours if side == "ours" else peer)()
            told[side].append(time.perf_counter() - began)
    return float(np.median(told["ours"])), float(np.median(told["peer"]))


def main() -> None:
    """Run the comparison and write its rows into the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = bigrec_study.load()
    model, write = bigrec_study.shipped(study, NAME)
    asked = bigrec_study.asked(study, "test", options.count)
    prompts = [write.ids(write.question(history)) for history in asked.history]
    prompts.sort(key=len, reverse=True)
    search = dict(num_beams=4, num_return_sequences=4, length_penalty=0.0, do_sample=False, max_new_tokens=LIMIT)
    said: dict[str, list] = {}

    def ours() -> None:
        said["ours"] = model.say(prompts, write.end)

    def peer() -> None:
        found = []
        for start in range(0, len(prompts), BATCH):
            embeds, lengths = llm.pad(model.embedded(prompts[start : start + BATCH]), left=True)
            mask = (torch.arange(embeds.shape[1]) >= embeds.shape[1] - lengths[:, None]).long()
            ends = dict(eos_token_id=write.end, pad_token_id=write.end)
            tokens = model.lm.model.generate(inputs_embeds=embeds, attention_mask=mask, **ends, **search)
            found += [spoken(line) for line in model.lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        said["peer"] = [found[at : at + 4] for at in range(0, len(found), 4)]

    beams = turns(ours, peer, options.repeat)
    same = np.mean([a[0] == b[0] for a, b in zip(said["ours"], said["peer"], strict=True)])
    answers = [lines[0] for lines in bigrec_results.said("ml-100k", NAME)]
    names = write.catalogue.names
    encode = bigrec_ranking.grounding(names).encode
    points = encode(names)
    near: dict[str, np.ndarray] = {}

    def ground() -> None:
        near["ours"] = bigrec_ranking.Grounding(names, encode, points).distances(answers)

    def embed_all() -> None:
        parts = [encode(answers[at : at + 16]) for at in range(0, len(answers), 16)]
        near["peer"] = torch.cdist(torch.cat(parts), points).numpy()

    grounded = turns(ground, embed_all, options.repeat)
    assert (near["ours"].argmin(1) == near["peer"].argmin(1)).mean() > 0.99
    tasks = {f"four beams for {len(prompts)} prompts; {same:.0%} of first answers agree": beams}
    tasks[f"{len(answers)} answers grounded to {len(names)} names"] = grounded
    rows = []
    for task, (mine, theirs) in tasks.items():
        values = [f"{mine:.3g}", f"{theirs:.3g}", f"transformers {transformers.__version__}", "s"]
        rows.append([f"BIGRec: {task}", *values, f"{theirs / mine:.2f}"])
    command = f"bigrec.py --count {options.count} --repeat {options.repeat}"
    table.write(rows, "BIGRec:", options.threads, command)


if __name__ == "__main__":
    main()
