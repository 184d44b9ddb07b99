import json
import threading

import pandas as pd
import pytest
import torch

from recnb import assets, store
from recnb.assets import AssetError
from recnb.store import Store


def make(calls, value=1.0):
    def run():
        calls.append(value)
        return {
            "weights.safetensors": {"w": torch.full((3,), value)},
            "table.parquet": pd.DataFrame({"a": [1, 2]}),
            "info.json": {"value": value},
        }

    return run


def test_made_once_and_read_back():
    calls, told = [], []
    for _ in range(2):
        got = Store().load_or_make("thing", {"lr": 0.1}, make(calls), report=told.append)
    assert calls == [1.0]
    assert torch.equal(got["weights.safetensors"]["w"], torch.ones(3))
    assert got["table.parquet"]["a"].tolist() == [1, 2] and got["info.json"] == {"value": 1.0}
    assert "making it" in told[0] and "from the store" in told[1]


@pytest.mark.parametrize("name", ["weights.safetensors", "table.parquet", "info.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_artifact_is_made_again(name, harm):
    calls = []
    Store().load_or_make("thing", 1, make(calls))
    path = Store().folder("thing", 1) / name
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else whole[:-1] + b"\0")
    got = Store().load_or_make("thing", 1, make(calls))
    assert len(calls) == 2 and got["info.json"] == {"value": 1.0}


def test_other_numbers_or_other_code_make_another_artifact(tmp_path):
    import types

    a, b = types.ModuleType("a"), types.ModuleType("b")
    sources = {"a": "def f():\n    return 1\n", "b": "def f():\n    return 2\n"}
    for module in (a, b):
        path = tmp_path / f"{module.__name__}.py"
        path.write_text(sources[module.__name__])
        module.__file__ = str(path)
    folders = {Store().folder("k", {"x": x}, code) for x in (1, 2) for code in ((), (a,), (b,))}
    assert len(folders) == 6


def test_comments_and_docstrings_do_not_change_the_code_digest(tmp_path):
    import importlib.util

    digests = []
    bodies = ('"""One."""\nx = 1  # why\n', '"""Another."""\n\nx = 1\n', '"""One."""\nx = 2\n')
    for index, text in enumerate(bodies):
        path = tmp_path / f"module_{index}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        digests.append(store.code_digest([module]))
    assert digests[0] == digests[1] != digests[2]


def test_a_failing_maker_leaves_nothing_behind():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Store().load_or_make("thing", 2, fail)
    with pytest.raises(ValueError, match="cannot store 'x.pkl'"):
        Store().load_or_make("thing", 3, lambda: {"x.pkl": 1})
    left = [path for path in (Store().root / "thing").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_two_that_want_the_same_artifact_make_it_once():
    calls = []
    slow = make(calls)
    threads = [threading.Thread(target=lambda: Store().load_or_make("thing", 4, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_offline_with_a_cache_needs_no_network(monkeypatch):
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: pytest.fail("it asked the network"))
    assert (assets.fetch("ml-100k") / "ml-100k.inter").exists()


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_HOME", str(tmp_path / "empty"))
    return tmp_path / "empty"


def test_offline_without_a_cache_is_one_clear_line(empty_home, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError, match="could not download ml-100k .*recnb fetch") as error:
        assets.fetch("ml-100k")
    assert "\n" not in str(error.value)
    assert not (empty_home / "assets" / "ml-100k").exists()


def test_a_tampered_download_is_not_used(empty_home, monkeypatch):
    def serve(command, **options):
        folder = command[command.index("--dest") + 1]
        (assets.Path(folder) / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"not the wheel")
        return assets.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", serve)
    with pytest.raises(AssetError, match="has sha256 .* expected 9c9948202011"):
        assets.fetch("ml-100k")
    assert not (empty_home / "assets" / "ml-100k").exists()


def test_a_damaged_asset_is_fetched_again(empty_home):
    folder = assets.fetch("ml-100k")
    before = json.loads((folder / "manifest.json").read_text())
    (folder / "ml-100k.item").write_text("broken")
    folder = assets.fetch("ml-100k")
    assert store.sha256(folder / "ml-100k.item") == before["ml-100k.item"]


def test_unknown_asset():
    with pytest.raises(AssetError, match="unknown asset 'ml-1b'; known: ml-100k"):
        assets.fetch("ml-1b")
