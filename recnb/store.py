"""The artifact store: trained weights and tables, found again by what made them.

An artifact is a folder of safetensors, parquet and JSON files. Its key hashes the configuration that made it
and the source code that ran, so changed code never meets old results. Writing is atomic, reading verifies
every file's sha256, and a damaged artifact is made again instead of used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import pandas as pd
import platformdirs

Files = Mapping[str, Any]


def home() -> Path:
    """Folder of everything that recnb keeps on this machine: ``$RECNB_HOME`` or the user's cache folder."""
    return Path(os.environ.get("RECNB_HOME") or platformdirs.user_cache_dir("recnb")).expanduser()


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(modules: Iterable[ModuleType]) -> str:
    """Hash of what modules do: their syntax trees, without comments and docstrings."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    body[0].value.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples, paths and numpy scalars into JSON values, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value) if isinstance(value, Path) else value


def _write(path: Path, value: Any) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in value.items()}, path)
    elif path.suffix == ".parquet":
        value.to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(plain(value), indent=1))
    else:
        raise ValueError(f"cannot store {path.name!r}: use .safetensors, .parquet or .json")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else json.loads(path.read_text())


class Store:
    """Artifacts by content key under one folder.

    Args:
        root: the folder; ``home() / "store"`` when not given.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root else home() / "store"

    def folder(self, kind: str, config: Any, code: Iterable[ModuleType] = ()) -> Path:
        """Where the artifact that this configuration and code make is kept."""
        key = json.dumps([kind, plain(config), code_digest(code)], sort_keys=True)
        return self.root / kind / hashlib.sha256(key.encode()).hexdigest()[:16]

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Read an artifact; None when it is absent or any file differs from its stored sha256."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if any(sha256(folder / name) != digest for name, digest in manifest["sha256"].items()):
                return None
            return {name: _read(folder / name) for name in manifest["sha256"]}
        except (OSError, ValueError, KeyError):
            return None

    def save(self, folder: Path, config: Any, files: Files) -> None:
        """Write an artifact whole or not at all, replacing what stood there."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        try:
            for name, value in files.items():
                _write(scratch / name, value)
            manifest = {"config": config, "sha256": {name: sha256(scratch / name) for name in files}}
            _write(scratch / "manifest.json", manifest)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def load_or_make(
        self,
        kind: str,
        config: Any,
        make: Callable[[], Files],
        code: Iterable[ModuleType] = (),
        report: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Return the stored artifact, or make and store it; one maker at a time across processes.

        Args:
            kind: a folder name such as ``"backbone"``.
            config: everything that decides the result; dataclasses are welcome.
            make: called without arguments; returns file name -> value.
            code: modules whose source decides the result too.
            report: told in one line whether the artifact was found.
        """
        folder = self.folder(kind, config, code)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            found = self.load(folder)
            if found is None:
                state = "damaged: making it again" if folder.exists() else "not in the store: making it"
                report(f"{kind} {folder.name}: {state}")
                self.save(folder, config, make())
                found = self.load(folder)
                if found is None:
                    raise OSError(f"{folder} cannot be read back after writing: is the disk full?")
            else:
                report(f"{kind} {folder.name}: from the store")
        return found
