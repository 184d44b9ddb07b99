"""Training and scoring with the language model, against plain transformers and peft on the same model and prompts.

    python tests/benchmarks/language_model.py

Each side trains in a process of its own, which tells its peak resident memory; the two take turns, and the table has
the median of each and of the paired ratios. Both make the same steps: micro-batches, sequence lengths, loss on the
answer's tokens alone, LoRA, precision, threads, clipping, AdamW. The peer is `transformers.Trainer` with peft's own
forward and the default attention; its slots hold an ordinary token, so it has no projector to train, and its rows keep
their last token, one more than ours. It scores by one call a candidate, without LoRA layers, as if they were merged.
Loading and a first step are not timed. Rows go to ``figures/benchmarks.csv`` in place of earlier ones of a task.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np
import peft
import table
import torch
import transformers
from torch import nn

from recnb import assets, llara_study, llm, runner
from recnb.llara import Llara, LlaraConfig
from recnb.llara_training import Plan, Rows, Stage, Study
from recnb.prompts import Prompt

CONFIG = LlaraConfig(listwise=0.0)  # the loss that both sides can have: on the answer alone
MICRO, LR, CLIP, EDGE = 8, 1e-3, 1.0, 4096  # EDGE: of the square matrices whose product is the machine's peak


def micro_batches(study: Study, count: int) -> list[list[Prompt]]:
    """Training prompts as LLaRA's last stage deals them: hybrid, rows of like length together."""
    builder = study.builder(transformers.AutoTokenizer.from_pretrained(assets.fetch(llm.DEFAULT)))
    plan, stage = Plan(strategy="direct", model=CONFIG), Stage("prompts", count, LR, MICRO, 1)
    rows = Rows(study, builder, plan, stage, study.backbone("SASRec").model.item_embeddings.detach())
    return [batch["prompts"] for at in range(rows.rounds) for batch in rows(at, np.random.default_rng(at))]


def our_model(study: Study, dtype: torch.dtype) -> Llara:
    """An untrained LLaRA over the stored backbone's item vectors."""
    items = study.backbone("SASRec").model.item_embeddings.detach()
    torch.manual_seed(0)
    return Llara(llm.load(dtype=dtype), items, CONFIG)


def peer_model(dtype: torch.dtype) -> nn.Module:
    """The same language model as transformers loads it, with its default attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(assets.fetch(llm.DEFAULT), dtype=dtype)


def train_ours(model: Llara, batches: list[list[Prompt]]) -> list[float]:
    """Train on micro-batches; returns the clock after every step."""
    tuned = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer, clock = torch.optim.AdamW(tuned, LR, weight_decay=0.0), []
    for batch in batches:
        model(batch).backward()
        nn.utils.clip_grad_norm_(tuned, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter())
    return clock


def train_peer(model: nn.Module, batches: list[list[Prompt]]) -> list[float]:
    """The same steps by Trainer and peft; returns the clock after every step."""
    lora = {"r": CONFIG.rank, "lora_alpha": CONFIG.alpha, "lora_dropout": CONFIG.dropout, "task_type": "CAUSAL_LM"}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**lora, target_modules=list(llm.TARGETS)))
    pairs = [(p.ids.tolist(), p.answers[p.place]) for batch in batches for p in batch]
    rows = [{"input_ids": ids + answer, "labels": [-100] * len(ids) + answer} for ids, answer in pairs]
    collate = transformers.DataCollatorForSeq2Seq(transformers.AutoTokenizer.from_pretrained(assets.fetch(llm.DEFAULT)))
    clock, watch = [], transformers.TrainerCallback()
    watch.on_step_end = lambda *given, **more: clock.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, per_device_train_batch_size=MICRO, num_train_epochs=1, learning_rate=LR, weight_decay=0.0,
            max_grad_norm=CLIP, lr_scheduler_type="constant", train_sampling_strategy="sequential", use_cpu=True,
            eval_strategy="no", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        transformers.Trainer(tuned, settings, collate, rows, callbacks=[watch]).train()
    return clock


def train(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    """One side's training: prompt tokens a second after a first step, and peak resident memory in MB."""
    batches = micro_batches(study := llara_study.load_study(), options.prompts)
    steps = [batches[0], *batches]  # the first only warms up
    ours = options.side == "ours"
    clock = train_ours(our_model(study, dtype), steps) if ours else train_peer(peer_model(dtype), steps)
    tokens = sum(len(prompt.ids) for batch in batches for prompt in batch)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # getrusage adds the parent's
    return {"speed": tokens / (clock[-1] - clock[0]), "peak": int(peak[1]) / 1024}


@torch.no_grad()
def score(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, object]:
    """Both ways of scoring, a few prompts in turn; the peer's input vectors are ready before its clock starts."""
    study = llara_study.load_study()
    ours, peer = our_model(study, dtype), peer_model(dtype).eval()
    prompts = sum(micro_batches(study, options.prompts), [])[: options.prompts // 2]
    seconds, tables = [], []
    for some in [prompts[:1], *(prompts[at : at + 4] for at in range(0, len(prompts), 4))]:
        embedded = [ours.rows([p] * len(p.answers), tails=p.answers) for p in some]
        clock, together, apart = [time.perf_counter()], ours.likelihoods(some), []
        clock.append(time.perf_counter())
        for prompt, rows in zip(some, embedded, strict=True):
            for row, answer in zip(rows, prompt.answers, strict=True):
                logits = peer(inputs_embeds=row[None], use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
                each = logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
                apart.append(float(each.sum()))
        seconds.append((np.diff([*clock, time.perf_counter()]) / len(some)).tolist())
        tables.append((together, np.reshape(apart, together.shape)))
    a, b = (np.concatenate(side) for side in zip(*tables[1:], strict=True))  # the first, of one prompt, warms up
    linear = [module.weight.numel() for module in peer.model.layers.modules() if isinstance(module, nn.Linear)]
    agreed, gap = float((a.argmax(1) == b.argmax(1)).mean()), float(np.abs(a - b).max())
    return {"seconds": seconds[1:], "gap": gap, "agreed": agreed, "parameters": sum(linear)}


def product(dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product, the best of three."""
    x = torch.ones(EDGE, EDGE, dtype=dtype)
    return 2 * EDGE**3 / min(timeit.repeat(lambda: x @ x, number=1, repeat=3))


def child(side: str, options: argparse.Namespace, dtype: str) -> dict:
    """Run one side in a process of its own, with the allocator settings of our notebooks' kernels."""
    given = f"--side {side} --dtype {dtype} --prompts {options.prompts} --threads {options.threads}".split()
    env = {**runner.KERNEL_ENV, **os.environ}
    told = subprocess.check_output([sys.executable, __file__, *given], env=env, text=True).splitlines()[-1]
    print(side, told, flush=True)
    return json.loads(told)


def compare(options: argparse.Namespace, dtype: torch.dtype) -> list[list]:
    """Both sides in turn; returns rows for the table."""
    name = str(dtype).removeprefix("torch.")
    scored = child("score", options, name)  # first, since it also fetches and trains what the store lacks
    assert scored["gap"] < 0.2 or scored["agreed"] >= 15 / 16, scored
    runs, peaks = {"ours": [], "peer": []}, []
    for turn in range(options.repeat):
        peaks.append(product(dtype))
        print(f"product {peaks[-1]:.3g}", flush=True)
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            runs[side].append(child(side, options, name))
    speed, memory = (np.array([[run[key] for run in runs[side]] for side in runs]) for key in ("speed", "peak"))
    rate, rows = 1 / np.array(scored["seconds"]).T, []
    for task, (a, b), unit, digits, better in (
        (f"training throughput, same {options.prompts} hybrid prompts", speed, "tokens/s", None, speed[0] / speed[1]),
        ("peak memory of that training", memory, "MB", None, memory[1] / memory[0]),
        ("20 candidates scored against 20 calls", rate, "prompts/s", 3, rate[0] / rate[1]),
    ):
        values = (round(float(np.median(side)), digits) for side in (a, b))
        rows.append([f"LLaRA: {task}", *values, unit, round(float(np.median(better)), 2)])
    share = round(float(np.median(4 * scored["parameters"] * speed[0] / peaks)), 3)
    task = f"LLaRA: share of the machine's {name} matrix-product peak"
    return [*rows, [task, share, f"1.0 ({EDGE}^3 product)", "share", share]]


def main() -> None:
    """Run the comparison and write its rows into the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=32, help=f"prompts trained on, a multiple of {MICRO}")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=table.PATH)
    for hidden in ("--side", "--dtype"):  # what a child process is told
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        return print(json.dumps((score if options.side == "score" else train)(options, getattr(torch, options.dtype))))
    peer = f"transformers {transformers.__version__} + peft {peft.__version__}"
    rows = [[*row[:3], peer, *row[3:]] for row in compare(options, llm.precision())]
    command = f"language_model.py --prompts {options.prompts} --repeat {options.repeat}"
    table.write(rows, "LLaRA:", options.threads, command, options.out)


if __name__ == "__main__":
    main()
