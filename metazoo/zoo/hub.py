"""Models on the Hugging Face Hub, by huggingface_hub, which is imported when it is first needed.

Where the Hub is, who asks and whether it may be asked at all is that library's business: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
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
from metazoo.io.download import TIMEOUT, Words, wrong_checksum
from metazoo.io.files import digest, locked

ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@?]+))?(?:/([^/@?]+))?")
FORMS = "hf://user/repo/NAME, hf://user/repo or hf://user/repo@REVISION/NAME"
LOGIN = "`hf auth login`, or set HF_TOKEN"
ONLINE = (
    "are you offline? a model that was loaded before needs no network where its #sha256= is given"
)


@dataclass(frozen=True)
class Place:
    """A repository on the Hub, a revision of it (None: the main branch) and a file or model in it (None: the only one)."""

    repo: str
    revision: str | None
    name: str | None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return "/".join(filter(None, [f"hf://{self.repo}{revision}", self.name]))


class _Unreachable(CheckpointError):
    """The Hub does not answer, or must not be asked."""


def parse(address: str) -> Place:
    """Return the place that an address names, or raise UnknownNameError."""
    if not (match := ADDRESS.fullmatch(address)):
        raise UnknownNameError(f"'{address}' is no address on the Hub", f"it looks like {FORMS}")
    repo, revision, name = match.groups()
    return Place(repo, unquote(revision) if revision else None, name)


def read_card(place: Place, most: int) -> tuple[bytes, Place]:
    """Return the card of the model at a place, of at most `most` bytes, and the place of the card itself.

    Where the Hub does not answer, the card that huggingface_hub has kept is taken. Raises CheckpointError.
    """
    library = _library()
    try:
        sizes = _sizes(place)
    except _Unreachable as unreachable:
        if place.name is None:
            raise
        file = replace(place, name=f"{place.name}.json")
        with contextlib.suppress(CheckpointError), _in_words(place):
            kept = library.hf_hub_download(
                place.repo, file.name, revision=place.revision, local_files_only=True
            )
            return Path(kept).read_bytes(), file
        raise unreachable from None
    file = replace(place, name=f"{place.name or _only_model(place, sizes)}.json")
    _check_size(file, sizes, most)
    with _in_words(file):
        return Path(
            library.hf_hub_download(place.repo, file.name, revision=place.revision)
        ).read_bytes(), file


def fetch(place: Place, destination: Path, sha256: str, size: int | None, words: Words) -> None:
    """Download a file to `destination`, which appears only when it is whole and has that sha256; see `download.fetch`."""
    library = _library()
    with _in_words(place):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination.parent, wait=True):
            if (
                destination.exists() and digest(destination, "sha256") == sha256
            ):  # another process was faster
                return
            _check_size(place, _sizes(place), size)
            folder = destination.parent / ".hub"
            came = Path(
                library.hf_hub_download(
                    place.repo, place.name, revision=place.revision, local_dir=folder
                )
            )
            found = digest(came, "sha256")
            if found == sha256:
                os.replace(came, destination)
            shutil.rmtree(folder)
            if found != sha256:
                raise wrong_checksum(
                    f"{place.name} in {_called(place)}", "sha256", found, sha256, words
                )


def push(repo: str, files: Mapping[str, bytes], readme: str, private: bool) -> str:
    """Write files into a repository in one commit, with a README.md where it has none, and return its address in a browser.

    A repository that does not exist is created. Raises CheckpointError, also where it is to be private and is public.
    """
    library = _library()
    place = Place(repo, None, None)
    with _in_words(place):
        api = library.HfApi()
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not api.model_info(repo, timeout=TIMEOUT).private:
            raise CheckpointError(
                f"{_called(place)} exists and is public",
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
            "the Hub is reached by huggingface_hub, which is missing",
            '`pip install "metazoo[hub]"`',
        ) from error
    return huggingface_hub


def _called(place: Place) -> str:
    return f"the repository {place.repo} on the Hub" + (
        f" at {place.revision}" if place.revision else ""
    )


def _sizes(place: Place) -> dict[str, int | None]:
    """Return every file of a repository with its size."""
    with _in_words(place):
        info = (
            _library()
            .HfApi()
            .model_info(place.repo, revision=place.revision, timeout=TIMEOUT, files_metadata=True)
        )
        return {file.rfilename: file.size for file in info.siblings or []}


def _only_model(place: Place, sizes: Mapping[str, int | None]) -> str:
    roots = [PurePosixPath(file) for file in sizes if "/" not in file]
    names = sorted(
        path.stem
        for path in roots
        if path.suffix == ".json" and f"{path.stem}.safetensors" in sizes
    )
    if not names:
        raise CheckpointError(
            f"{_called(place)} has no model of metazoo",
            "a model is NAME.json beside NAME.safetensors",
        )
    if len(names) > 1:
        raise UnknownNameError(
            f"{_called(place)} has several models: {', '.join(names)}",
            f"name one: hf://{place.repo}/{names[0]}",
        )
    return names[0]


def _check_size(place: Place, sizes: Mapping[str, int | None], most: int | None) -> None:
    size = sizes.get(place.name or "")
    if most is not None and size is not None and size > most:
        raise CheckpointError(
            f"{place.name} in {_called(place)} has {size} bytes, more than the {most} that it may have",
            "it is not the file that it should be: ask who put it there",
        )


@contextlib.contextmanager
def _in_words(place: Place) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors for people."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils  # its errors are exported at run time alone
    called = _called(place)
    try:
        yield
    except MetazooError:
        raise
    except utils.GatedRepoError as error:
        raise CheckpointError(
            f"{called} is gated", f"ask for access on its page, then {LOGIN}"
        ) from error
    except utils.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no {called.removeprefix('the ')}", f"or it is private: {LOGIN}"
        ) from error
    except utils.RevisionNotFoundError as error:
        raise CheckpointError(
            f"the repository {place.repo} on the Hub has no revision '{place.revision}'",
            "name a branch, a tag or a commit",
        ) from error
    except utils.LocalEntryNotFoundError as error:
        raise _Unreachable(f"cannot reach {called}: {_cause(error)}", ONLINE) from error
    except utils.EntryNotFoundError as error:
        raise CheckpointError(f"{called} has no {place.name}", f"it looks like {FORMS}") from error
    except utils.HFValidationError as error:
        raise UnknownNameError(
            f"'{place.repo}' is no name of a repository: {_cause(error)}", f"it looks like {FORMS}"
        ) from error
    except utils.OfflineModeIsEnabled as error:
        raise _Unreachable(f"cannot reach {called}: HF_HUB_OFFLINE is set", ONLINE) from error
    except OSError as error:
        if error.errno is None:  # no trouble with a disk
            raise _failed(called, error) from error
        raise CheckpointError(
            f"cannot load from {called}: {error}",
            "METAZOO_CACHE moves metazoo's cache, HF_HOME that of huggingface_hub",
        ) from error
    except (
        Exception
    ) as error:  # each version of huggingface_hub raises the errors of another HTTP library
        raise _failed(called, error) from error


def _failed(called: str, error: Exception) -> CheckpointError:
    forbidden = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    return _Unreachable(f"{called} cannot be used: {_cause(error)}", LOGIN if forbidden else ONLINE)


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
