"""Where a model comes from: a folder, a file, or a repository of the Hugging Face Hub that is downloaded first."""

import pathlib
import re
from typing import NamedTuple

from nextgpt_jax.errors import UserError, first_line

_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
COMPANION_FILES = ("*.json", "*.model", "*.txt", "LICENSE*", "README.md")  # configs, tokenizers, terms


class Source(NamedTuple):
    """A local folder (or file), with the repository and the revision it was downloaded from ("": it was not)."""

    path: pathlib.Path
    hub_id: str = ""
    revision: str = ""

    def facts(self) -> dict[str, str]:
        """For a manifest."""
        return {
            "source": self.hub_id or str(self.path.absolute()),
            **({"revision": self.revision} if self.hub_id else {}),
        }


def find(source: str, layout: str, *, revision: str = "") -> Source:
    """A local source as it is; a hub id downloaded, of a pinned revision, and resumed if it was interrupted.

    `layout` says in messages which files are expected.

    Raises:
      UserError: it is neither, or the hub cannot be reached.
    """
    path = pathlib.Path(source)
    if path.exists():
        return Source(path)
    if not _HUB_ID.fullmatch(source) or source.startswith((".", "/")):
        raise UserError(f"--source: no such folder: {source} (wanted: {layout})")
    return _download(source, layout, revision)


def _download(hub_id: str, layout: str, revision: str) -> Source:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = huggingface_hub.HfApi().model_info(hub_id, revision=revision or None, timeout=20)
        names = [file.rfilename for file in info.siblings]
        path = huggingface_hub.snapshot_download(hub_id, revision=info.sha, allow_patterns=wanted(names))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(f"--source: {str(error).splitlines()[0]}") from None
    except Exception as error:  # which kinds depends on the HTTP library that huggingface_hub is built on
        reason = first_line(error)
        raise UserError(
            f"--source: there is no folder {hub_id}, and the hub cannot be reached ({reason}): "
            f"download it elsewhere and give the folder ({layout})"
        ) from None
    return Source(pathlib.Path(path), hub_id, info.sha)


def wanted(names: list[str]) -> list[str]:
    """Which files of a repository to download: the weights once, safetensors if there are any, and what is beside."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(str(pathlib.PurePosixPath(name).parent), []).append(name)
    chosen = []
    for files in folders.values():
        chosen += [f for f in files if any(pathlib.PurePosixPath(f).match(pattern) for pattern in COMPANION_FILES)]
        weights = [f for f in files if f.endswith((".safetensors", ".bin", ".pt", ".pth"))]
        plain = [f for f in weights if ".fp16." not in f and ".non_ema" not in f] or weights
        chosen += [f for f in plain if f.endswith(".safetensors")] or plain
    return sorted(chosen)
