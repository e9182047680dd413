"""Fixtures that several test files share."""

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with a tiny random system (hub/) and a dataset (data/). Read only."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.write_hub(root / "hub")
    tiny.write_data(root / "data")
    return root
