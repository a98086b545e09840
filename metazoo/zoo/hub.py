"""Models on the Hugging Face Hub, through huggingface_hub, which is imported on first use.

That library reads its own settings: HF_ENDPOINT (where the Hub is), HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from metazoo.errors import CheckpointError, MetazooError, UnknownNameError, first_line
from metazoo.io.download import TIMEOUT, DownloadMessages, wrong_checksum
from metazoo.io.files import digest, locked

ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@?]+))?(?:/([^/@?]+))?")
FORMS = "hf://user/repo/NAME, hf://user/repo or hf://user/repo@REVISION/NAME"
LOGIN = "`hf auth login`, or set HF_TOKEN"
ONLINE = "are you offline? a model in the cache loads without network if you give its #sha256="


@dataclass(frozen=True)
class Place:
    """A model or file in a repository on the Hub.

    `revision` None is the main branch; `name` None is the only model.
    """

    repo: str
    revision: str | None
    name: str | None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return "/".join(filter(None, [f"hf://{self.repo}{revision}", self.name]))


class _Unreachable(CheckpointError):
    """The Hub does not answer, or HF_HUB_OFFLINE forbids asking it."""


def parse(address: str) -> Place:
    """Return the place that an hf:// address names; raise UnknownNameError if it is malformed."""
    if not (match := ADDRESS.fullmatch(address)):
        raise UnknownNameError(
            f"'{address}' is not a valid address on the Hub", f"it must look like {FORMS}"
        )
    repo, revision, name = match.groups()
    return Place(repo, unquote(revision) if revision else None, name)


def read_card(place: Place, limit: int) -> tuple[bytes, Place]:
    """Return a model's card, of at most `limit` bytes, and the place of the card file.

    If the Hub cannot be reached, the card comes from huggingface_hub's cache. Raises
    CheckpointError.
    """
    try:
        sizes = _sizes(place)
    except _Unreachable:
        if (kept := _read_kept_card(place)) is None:
            raise
        return kept
    file = replace(place, name=f"{place.name or _only_model(place, sizes)}.json")
    _check_size(file, sizes, limit)
    return _download(file).read_bytes(), file


def fetch(
    place: Place, destination: Path, sha256: str, size: int | None, messages: DownloadMessages
) -> None:
    """Download a file to `destination`, which appears only if it is complete and has that sha256.

    See `download.fetch`.
    """
    with _explained(place):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination.parent, wait=True):
            if destination.exists() and digest(destination, "sha256") == sha256:
                return  # another process was faster
            _check_size(place, _sizes(place), size)
            folder = destination.parent / ".hub"  # kept if the download breaks off, to resume it
            downloaded = _download(place, local_dir=folder)
            if (found := digest(downloaded, "sha256")) == sha256:
                os.replace(downloaded, destination)
            shutil.rmtree(folder)
            if found != sha256:
                raise wrong_checksum(str(place), "sha256", found, sha256, messages)


def push(repo: str, files: Mapping[str, bytes], readme: str, private: bool) -> str:
    """Write files into a repository in one commit and return its web address.

    Creates the repository if it does not exist, and adds README.md if it has none. Raises
    CheckpointError, also if `private` is asked for and the repository is public.
    """
    library = _library()
    place = Place(repo, None, None)
    with _explained(place):
        api = library.HfApi()
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not api.model_info(repo, timeout=TIMEOUT).private:
            raise CheckpointError(
                f"{place} exists and is public",
                "make it private in its settings, or leave out --private",
            )
        if not api.file_exists(repo, "README.md"):
            files = {**files, "README.md": readme.encode()}
        additions = [library.CommitOperationAdd(name, data) for name, data in files.items()]
        api.create_commit(repo, additions, commit_message=f"{', '.join(files)}, written by metazoo")
    return url


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            "models on the Hub need huggingface_hub, which is not installed",
            '`pip install "metazoo[hub]"`',
        ) from error
    return huggingface_hub


def _sizes(place: Place) -> dict[str, int | None]:
    """Return the size of every file in a repository."""
    library = _library()
    with _explained(replace(place, name=None)):
        info = library.HfApi().model_info(
            place.repo, revision=place.revision, timeout=TIMEOUT, files_metadata=True
        )
    return {file.rfilename: file.size for file in info.siblings or []}


def _download(file: Place, **settings: Any) -> Path:
    library = _library()
    with _explained(file):
        return Path(
            library.hf_hub_download(file.repo, file.name, revision=file.revision, **settings)
        )


def _read_kept_card(place: Place) -> tuple[bytes, Place] | None:
    """Return a model's card from huggingface_hub's cache, or None if it is not there."""
    if place.name is None:
        return None
    file = replace(place, name=f"{place.name}.json")
    with contextlib.suppress(CheckpointError, OSError):
        return _download(file, local_files_only=True).read_bytes(), file
    return None


def _only_model(place: Place, sizes: Mapping[str, int | None]) -> str:
    files = [PurePosixPath(file) for file in sizes if "/" not in file]
    names = sorted(
        file.stem
        for file in files
        if file.suffix == ".json" and f"{file.stem}.safetensors" in sizes
    )
    if not names:
        raise CheckpointError(
            f"{place} has no metazoo model", "a model is NAME.json beside NAME.safetensors"
        )
    if len(names) > 1:
        raise UnknownNameError(
            f"{place} has several models: {', '.join(names)}",
            f"name one: {replace(place, name=names[0])}",
        )
    return names[0]


def _check_size(file: Place, sizes: Mapping[str, int | None], limit: int | None) -> None:
    size = sizes.get(file.name or "")
    if limit is not None and size is not None and size > limit:
        raise CheckpointError(
            f"{file} has {size} bytes; at most {limit} are allowed",
            "it is not the expected file: ask its author",
        )


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Turn any error of huggingface_hub into one of ours."""
    try:
        yield
    except MetazooError:
        raise
    # Each version of huggingface_hub raises the errors of another HTTP library.
    except Exception as error:
        raise _explain(place, error) from error


def _explain(place: Place, error: Exception) -> CheckpointError:
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils  # it exports its errors at run time only
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, utils.RepositoryNotFoundError) or status == 404:
        return CheckpointError(
            f"there is no {place}, or you may not read it",
            f"check the name; if the repository is private or gated: {LOGIN}",
        )
    what = f"{place} cannot be used: {_cause(error)}"
    if status in (401, 403):
        return CheckpointError(
            what, f"use a token with access (to push, with write access): {LOGIN}"
        )
    is_disk_error = getattr(error, "errno", None) is not None
    if is_disk_error or isinstance(error, utils.HFValidationError):
        return CheckpointError(what)
    return _Unreachable(what, ONLINE)


def _cause(error: BaseException) -> str:
    """Return the first line of the error that started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
