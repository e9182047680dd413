"""Random requests, made from the OpenAPI document."""

import pathlib
import subprocess
import sys

import httpx
import pytest

from tests.serving.http.server import KEY

pytestmark = pytest.mark.slow


def test_random_requests_fail_by_4xx_at_most(address, tmp_path):
    command = [str(pathlib.Path(sys.executable).with_name("schemathesis")), "run", f"{address}/openapi.json"]
    checks = ["--checks=not_a_server_error", "--phases=examples,coverage,fuzzing", "--max-examples=20", "--seed=1"]
    options = ["--request-timeout=60", f"--header=Authorization: Bearer {KEY}", "--suppress-health-check=all"]
    done = subprocess.run([*command, *checks, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:]
    assert httpx.get(f"{address}/healthz").status_code == 200
