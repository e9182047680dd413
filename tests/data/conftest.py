"""Fixtures of the data tests."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((10, 12, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path
