"""Local files of a published model: a folder, a file, or a repository of the Hugging Face Hub, which is downloaded."""

import os
import pathlib
import re
from typing import NamedTuple

from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.weights import hub_files
from nextgpt_jax.weights.components import LAYOUTS

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
    source: str | os.PathLike, component: str, *, field: str = "--source", revision: str = "", weights: bool = True
) -> Source:
    """The local files of `source`: a path as it is, a hub id after downloading what is missing in the hub's cache.

    Only what the component needs is downloaded (hub_files.py).

    A branch or tag is resolved to a commit once, so all files are of one commit. Without a connection, the cached
    files of the revision are used.

    Args:
      source: a path, OWNER/NAME or OWNER/NAME@REVISION.
      component: as `python -m convert` calls it, or SYSTEM or TOKENIZER of hub_files (the latter has no weights).
      field: the option or config field that gave `source`, for error messages.
      revision: branch, tag or commit; overrides the one in `source`. Default: the repository's main branch.
      weights: False: download the companion files only.

    Raises:
      UserError: there is no such path or repository, or the hub cannot be reached and the cache does not have it.
    """
    path, layout = pathlib.Path(source), {**LAYOUTS, **hub_files.LAYOUTS}[component]
    if str(source) and path.exists():
        return Source(path)
    parsed = _HUB_ID.fullmatch(str(source))
    if parsed is None or not is_hub_id(str(source)):
        raise UserError(f"{field}: no such folder: {str(source)!r} (wanted: {layout})")
    return _download(parsed["id"], revision or parsed["revision"] or "main", component, layout, field, weights)


def _download(hub_id: str, revision: str, component: str, layout: str, field: str, weights: bool) -> Source:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, timeout=20)
        names = [file.rfilename for file in info.siblings or []]
        files = hub_files.companion_files(names, component)
        path = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=files)
        if weights:
            files = hub_files.weights_files(names, component, pathlib.Path(path))
            huggingface_hub.snapshot_download(hub_id, revision=pathlib.Path(path).name, allow_patterns=files)
    except UserError as error:
        raise UserError(f"{field}: {hub_id}: {error}") from None
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
