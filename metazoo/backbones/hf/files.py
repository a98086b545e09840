"""The files of an encoder: in a folder, or in huggingface_hub's cache, where a download puts them.

Only JSON and safetensors are read: no pickle, and no code of a repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from metazoo.errors import CheckpointError, OptionError, first_line
from metazoo.io.download import TIMEOUT
from metazoo.io.files import cache_directory, expand_user, read_json

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = "model-*.safetensors"
SHARD = re.compile(r"[\w-]+\.safetensors")
# Everything but the weights that the features of an example depend on; pooling is added to it.
SETTINGS = (
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
POOLINGS = "*_Pooling/config.json"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
AGAIN = "get it again"
T = TypeVar("T", dict[str, Any], list[Any])


@dataclass(frozen=True)
class Place:
    """Where the files of an encoder are; `commit` is "" for a folder that is not of the Hub's cache."""

    name: str
    commit: str
    folder: Path

    def json(self, file: str, kind: type[T]) -> T:
        """Return the value in a JSON file, an empty one if the file is missing.

        Raises CheckpointError if it is damaged or of another kind.
        """
        path = self.folder / file
        value = read_json(path, AGAIN) if path.is_file() else kind()
        if not isinstance(value, kind):
            raise CheckpointError(f"{path} is not what it should be in an encoder", AGAIN)
        return value

    def settings(self) -> str:
        """Return the sha256 of all files but the weights that the features depend on."""
        paths = [self.folder / file for file in SETTINGS]
        return _digest([p for p in paths if p.is_file()] + sorted(self.folder.glob(POOLINGS)))

    def weights(self) -> list[Path]:
        """Return the files of the weights: one, or an index and its shards.

        Raises OptionError if there are none in safetensors, CheckpointError if one is missing.
        """
        if (single := self.folder / WEIGHTS).is_file():
            return [single]
        if not (self.folder / INDEX).is_file():
            raise OptionError(
                f"'{self.name}' has no {WEIGHTS}, and other files of weights are pickles, which can "
                "run code",
                "choose another repository or revision; or if you trust it, convert it: "
                "transformers.AutoModel.from_pretrained(NAME).save_pretrained(FOLDER), then give FOLDER",
            )
        names = self.json(INDEX, dict).get("weight_map")
        shards = sorted(set(names.values())) if isinstance(names, dict) else []
        if not shards or not all(isinstance(s, str) and SHARD.fullmatch(s) for s in shards):
            raise CheckpointError(f"{self.folder / INDEX} does not name files of weights", AGAIN)
        for shard in shards:
            if not (self.folder / shard).is_file():
                raise CheckpointError(f"'{self.name}' is not complete: it has no {shard}", AGAIN)
        return [self.folder / INDEX, *(self.folder / shard for shard in shards)]

    def sha256(self) -> str:
        """Return the sha256 of the weights; that of sharded ones is of all their files together."""
        return _digest(self.weights())


def _digest(paths: list[Path]) -> str:
    """Return the sha256 of the contents of files, one after the other."""
    checksum = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                checksum.update(block)
    return checksum.hexdigest()


def library(name: str) -> Any:
    """Import a package that comes with `metazoo[hf]`, or raise OptionError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"encoders of the Hugging Face Hub need {name}, which is not installed",
            '`pip install "metazoo[hf]"`',
        ) from error


def find(name: str, revision: str) -> Place:
    """Return where the files of an encoder are, downloading what the cache does not have.

    Args:
        name: a folder, or a repository on the Hub, as USER/NAME.
        revision: a branch, tag or commit on the Hub; "" is the main branch.

    Raises OptionError if there is no such encoder, or it cannot be downloaded.
    """
    folder = expand_user(name, "the encoder").absolute()
    if folder.is_dir():
        place = Place(str(folder), "", folder)
    elif REPOSITORY.fullmatch(name):
        found = _on_hub(name, revision)
        place = Place(name, found.name, found)
    else:
        raise OptionError(
            f"there is no folder {name}", "give a folder, or the name of a repository: USER/NAME"
        )
    if not (place.folder / CONFIG).is_file():
        raise OptionError(
            f"'{name}' has no {CONFIG}, so it is not an encoder of transformers",
            "give the folder that save_pretrained wrote, or another name",
        )
    return place


def _on_hub(name: str, revision: str) -> Path:
    """Return the folder of a repository in huggingface_hub's cache.

    It is used without asking the Hub if metazoo has downloaded it before, and if the Hub does not
    answer. Another program may have left it without some files, such as those of the pooling.
    """
    hub = library("huggingface_hub")
    patterns = [*SETTINGS, POOLINGS, WEIGHTS, INDEX, SHARDS]
    wanted = {"revision": revision or None, "allow_patterns": patterns}
    kept = _kept(hub, name, wanted)
    if kept is not None and _mark(kept).exists():
        return kept
    try:
        # snapshot_download falls back to its cache in silence; this does not.
        hub.HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT)
        folder = Path(hub.snapshot_download(name, **wanted))
    except Exception as error:  # each version of huggingface_hub raises those of another library
        if kept is not None:
            return kept
        raise _explained(name, revision, error) from error
    with contextlib.suppress(OSError):
        _mark(folder).parent.mkdir(parents=True, exist_ok=True)
        _mark(folder).touch()
    return folder


def _kept(hub: Any, name: str, wanted: dict[str, Any]) -> Path | None:
    """Return the folder of a repository in the cache, if it has weights."""
    try:
        folder = Path(hub.snapshot_download(name, local_files_only=True, **wanted))
        Place(name, folder.name, folder).weights()
        return folder
    except Exception:  # it is not there, or not whole
        return None


def _mark(snapshot: Path) -> Path:
    """Return the empty file that says that a snapshot is complete."""
    return cache_directory() / "hub" / snapshot.name


def _explained(name: str, revision: str, error: Exception) -> OptionError:
    what = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return OptionError(
            f"there is no encoder {what} on the Hugging Face Hub, or you may not read it",
            "check the name; if the repository is private or gated: `hf auth login`, or set HF_TOKEN",
        )
    return OptionError(
        f"{what} is not in the cache, and the Hugging Face Hub cannot be reached: "
        f"{first_line(error)}",
        f"connect to the network once; or run `hf download {name} --local-dir FOLDER` elsewhere, "
        "copy FOLDER to this machine, and give its path in place of the name",
    )
