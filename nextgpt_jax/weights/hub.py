"""Local files of a published model: a folder, a file, or a repository of the Hugging Face Hub, which is downloaded."""

import os
import pathlib
import re
from typing import NamedTuple

from nextgpt_jax.errors import UserError, first_line

COMPANION_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")  # configs, tokenizers, terms
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class Source(NamedTuple):
    """A local folder or file. If it was downloaded, with its repository and commit; else these are empty."""

    path: pathlib.Path
    hub_id: str = ""
    revision: str = ""

    def manifest_entries(self) -> dict[str, str]:
        """What a manifest records of it."""
        if self.hub_id:
            return {"source": self.hub_id, "revision": self.revision}
        return {"source": str(self.path.absolute())}


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as OWNER/NAME or OWNER/NAME@REVISION and not as a path: no folder OWNER exists here."""
    return _HUB_ID.fullmatch(name) is not None and not pathlib.Path(name.split("/")[0]).exists()


def find(
    source: str | os.PathLike, layout: str, *, field: str = "--source", revision: str = "", weights: bool = True
) -> Source:
    """The local files of `source`: a path as it is, a hub id after downloading what is missing in the hub's cache.

    A branch or tag is resolved to a commit once, so all files are of one commit. Without a connection, the cached
    files of the revision are used.

    Args:
      source: a path, OWNER/NAME or OWNER/NAME@REVISION.
      layout: the expected files, for error messages.
      field: the option or config field that gave `source`, for error messages.
      revision: branch, tag or commit; overrides the one in `source`. Default: the repository's main branch.
      weights: False: download the companion files only.

    Raises:
      UserError: there is no such path or repository, or the hub cannot be reached and the cache does not have it.
    """
    path = pathlib.Path(source)
    if str(source) and path.exists():
        return Source(path)
    parsed = _HUB_ID.fullmatch(str(source))
    if parsed is None or not is_hub_id(str(source)):
        raise UserError(f"{field}: no such folder: {str(source)!r} (wanted: {layout})")
    return _download(parsed["id"], revision or parsed["revision"] or "main", layout, field, weights)


def _download(hub_id: str, revision: str, layout: str, field: str, weights: bool) -> Source:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, timeout=20)
        files = wanted_files([file.rfilename for file in info.siblings or []], weights=weights)
        path = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=files)
    except GatedRepoError:
        raise UserError(f"{field}: {hub_id} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{field}: there is no folder {hub_id}, and no such repository on the hub (private ones need HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{field}: {hub_id} has no revision {revision} on the hub") from None
    except Exception as error:  # the types depend on the HTTP library of huggingface_hub
        cached = _cached(hub_id, revision)
        if cached is None:
            raise UserError(
                f"{field}: there is no folder {hub_id}, and the hub cannot be reached ({first_line(error)}): download "
                f"it elsewhere and give the folder ({layout})"
            ) from None
        path = cached
    return Source(pathlib.Path(path), hub_id, pathlib.Path(path).name)


def _cached(hub_id: str, revision: str) -> str | None:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(hub_id, revision=revision, local_files_only=True)
    except Exception as error:
        # huggingface_hub 2 takes a snapshot for incomplete if it lacks files that were never wanted.
        return getattr(error, "snapshot_path", None)


def wanted_files(names: list[str], *, weights: bool = True) -> list[str]:
    """The files of a repository to download: companion files and, if `weights`, in each folder one format of the
    weights, preferably safetensors in full precision."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(str(pathlib.PurePosixPath(name).parent), []).append(name)
    chosen = []
    for files in folders.values():
        chosen += [f for f in files if any(pathlib.PurePosixPath(f).match(pattern) for pattern in COMPANION_FILES)]
        if weights:
            every = [f for f in files if f.endswith(_WEIGHT_SUFFIXES)]
            plain = [f for f in every if ".fp16." not in f and ".non_ema" not in f] or every
            chosen += [f for f in plain if f.endswith(".safetensors")] or plain
    return sorted(chosen)
