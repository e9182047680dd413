"""What made a run: the versions of the software, the commit of a checkout, the command line, the devices."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

import nextgpt_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
_GIT_SECONDS = 10


def provenance(step: int) -> dict[str, Any]:
    """An entry of the history in run.json, as JSON values, for a process that begins after `step` steps."""
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "commit": commit(pathlib.Path(nextgpt_jax.__file__).parents[1]),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions by package, of those that are installed, with Python's and this one's."""
    found = {"python": platform.python_version(), "nextgpt_jax": nextgpt_jax.__version__}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # installed in another way
            continue
    return found


def commit(root: pathlib.Path) -> str:
    """The commit of a git checkout, with "-dirty" if a tracked file was changed; "": not one, or git cannot tell."""
    if not (root / ".git").exists():
        return ""
    try:
        found = _git(root, "rev-parse", "HEAD")
        return found + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    return done.stdout.strip()
