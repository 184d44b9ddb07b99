"""Shared fixtures: real MovieLens-100K, verified and cached outside the checkout, and an empty store a test."""

import os
import signal

import pytest

from recnb import assets, data, datasets, store  # none of them imports torch, which reads the next lines

# On a busy machine two OpenMP threads wait for each other and can be many times slower than one.
for name in ("OMP_NUM_THREADS", "RECNB_THREADS"):
    os.environ.setdefault(name, "1")


# A shell that starts the tests in the background makes them ignore Ctrl-C, and the processes that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """Give each test a home of its own that shares only the verified downloads."""
    assets.fetch("ml-100k")
    shared = store.home() / "assets"
    home = tmp_path / "home"
    home.mkdir()
    os.symlink(shared, home / "assets", target_is_directory=True)
    monkeypatch.setenv("RECNB_HOME", str(home))
    monkeypatch.delenv("RECNB_DATA", raising=False)
    monkeypatch.delenv("RECNB_RUNS", raising=False)
    return home


@pytest.fixture(scope="session")
def movielens():
    return datasets.load("ml-100k")


@pytest.fixture(scope="session")
def loo(movielens):
    return data.leave_one_out(movielens)
