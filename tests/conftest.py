"""Fixtures that several test files share."""

import os
import pathlib

from filelock import FileLock
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.annotations  # noqa: F401
from tests import QUICK_COMPILER

# Shapes and dtypes of arrays are checked at every call; media's functions check what they are given themselves.
CHECKED = ("models", "generation", "inference", "training", "sharding", "flops")
install_import_hook([f"nextgpt_jax.{part}" for part in CHECKED], "tests.annotations.checked")

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever this machine has: parity is a matter of float32
os.environ["XLA_FLAGS"] = f"{QUICK_COMPILER} {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402
import pytest  # noqa: E402

from nextgpt_jax.inference.engine import Engine  # noqa: E402
from nextgpt_jax.weights.load import load_system  # noqa: E402
from tests import tiny  # noqa: E402

settings.register_profile("untimed", deadline=None)  # the first example of a test compiles
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Files of few long tests come first: the processes that share the files out then end together."""
    items.sort(key=lambda item: item.path.parent.name != "training")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """What is compiled twice in a run of the tests, by whichever process, is compiled once."""
    folder = _shared(tmp_path_factory) / "xla"
    options = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.2}
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with a tiny random system (hub/), a dataset (data/), and one of images (pictures/). Read only: all
    processes of a run share it."""
    root = _shared(tmp_path_factory) / "tiny"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            written = tmp_path_factory.mktemp("written")
            tiny.write_hub(written / "hub")
            tiny.write_data(written / "data")
            tiny.write_data(written / "pictures", kinds=tiny.PICTURES)
            written.rename(root)
    return root


def _shared(tmp_path_factory) -> pathlib.Path:
    """A folder of all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_config(tiny_root):
    """The config of the tiny system. Read only."""
    return tiny.experiment(tiny_root, "stage3")


@pytest.fixture(scope="session")
def tiny_system(tiny_config):
    """The tiny system in memory. Read only."""
    return load_system(tiny_config.model)


@pytest.fixture(scope="session")
def tiny_engine(tiny_system, tiny_config):
    """An engine of the tiny system. What a test replaces in it is put back by monkeypatch."""
    return Engine(tiny_system, tiny_config.generation)
