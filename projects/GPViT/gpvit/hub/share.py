"""Detectors that are handed on: a folder with all it takes to use one, here or in a repository of the Hugging Face Hub.

It holds ``model.safetensors`` (weights as used for inference; classes, config, versions and licence in its metadata),
``config.yaml`` (the config once more, to be read) and ``README.md`` (:mod:`.model_card`). None of it is code.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    RepositoryNotFoundError,
)
from omegaconf import DictConfig
from yaml import YAMLError

from .. import checkpoint
from ..checkpoint.huggingface import (
    CARD,
    CONFIG,
    FILES,
    LOG_IN,
    WEIGHTS,
    errors_in_one_line,
    parsed,
)
from ..config import inference_config, load_config
from ..predictor import Predictor, config_of
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line
from ..utils.yaml_io import read_yaml
from .model_card import model_card, python_text, shell_text, training_of, versions


def pull(address: str, folder: Path) -> checkpoint.File:
    """Copies a model of the Hub to a folder, once it is seen that it can be used. Raises as :func:`download` does."""
    uri, api = parsed(address), HfApi()
    with errors_in_one_line(address, api):
        snapshot = Path(
            api.snapshot_download(uri.id, revision=uri.revision, allow_patterns=list(FILES))
        )
    if not (snapshot / WEIGHTS).is_file():
        raise UserError(
            f"{address} has no {WEIGHTS}: it is no model that `gpvit share push` has written"
        )
    file = checkpoint.read(str(snapshot / WEIGHTS))
    usable_config(file)
    for name in FILES:  # the cache may have others
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, folder / name)
    return file


def push(folder: Path, address: str, *, private: bool, overwrite: bool) -> str:
    """Puts a model that :func:`write` wrote onto the Hub, in one commit.

    Args:
        folder: of the model.
        address: hf://USER/NAME; the repository is made if there is none.
        private: make a repository that only its owners see.
        overwrite: let the model take the place of one that is there; the history of the repository keeps that.

    Returns:
        The address of its page.

    Raises:
        UserError: not logged in, not allowed, there is a model already, or the Hub cannot be reached.
    """
    uri, api = parsed(address), HfApi()
    if uri.revision or uri.path_in_repo:
        raise UserError(f"{address} names a revision or file: models are pushed to hf://USER/NAME")
    if get_token() is None:
        raise UserError(f"nobody is logged in to {api.endpoint}: {LOG_IN}")
    with errors_in_one_line(address, api):
        _prepare_repository(api, uri.id, private, overwrite)
        operations = [CommitOperationAdd(name, str(folder / name)) for name in FILES]
        api.create_commit(uri.id, operations, commit_message="Model of GPViT for Detectron2")
    return f"{api.endpoint}/{uri.id}"


def _prepare_repository(api: HfApi, name: str, private: bool, overwrite: bool) -> None:
    try:
        present = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=private or None)  # None: as is usual for the owner
        return
    if private and not present.private:
        raise UserError(
            f"{name} exists and is public, which --private does not change: see its page, or push to another"
        )
    there = {file.rfilename for file in present.siblings or []}
    if (found := [name for name in FILES if name in there]) and not overwrite:
        raise UserError(
            f"{name} has {preview(found)} already: add --overwrite (its history keeps them), or push to another"
        )


def write(weights: str, folder: Path, *, licence: str, address: str, config_file: str = "") -> None:
    """Writes a detector as it is handed on. What this function wrote is copied, with its card as edited since.

    Args:
        weights: checkpoint, folder or address of the detector.
        folder: where the files go.
        licence: of the weights, as the Hub writes it, such as "apache-2.0".
        address: what people will give to load the detector.
        config_file: the detector's config, if the checkpoint does not carry it.

    Raises:
        UserError: this is no detector that others could use, or it says that it has another licence.
    """
    file = checkpoint.read(weights)
    _check_licence(file.path, file.about.get("licence"), licence)
    cfg = usable_config(file, config_file)
    source = Path(file.path).parent
    if Path(file.path).name == WEIGHTS and all((source / name).is_file() for name in FILES):
        _copy(source, folder, licence, address)
        return
    card = model_card(file, cfg, licence, address, training_of(file))
    metadata = {key: value for key, value in file.about.items() if key == "iterations"}
    metadata |= {
        "classes": file.classes,
        "inference_config": inference_config(cfg),
        "versions": versions(file),
    }
    checkpoint.write(
        str(folder / WEIGHTS), file.weights, **metadata, licence=licence, source=_origin(file)
    )
    with atomic_write(folder / CONFIG) as path:
        path.write_text(inference_config(cfg), encoding="utf-8")
    with atomic_write(folder / CARD) as path:
        card.save(path)


def _copy(source: Path, folder: Path, licence: str, address: str) -> None:
    """A model that is handed on as it is, but for the address in the code of its card."""
    for name in FILES:
        with atomic_write(folder / name) as path:
            shutil.copyfile(source / name, path)
    try:
        text = (source / CARD).read_text(encoding="utf-8")
        if header := re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL):
            read_yaml(header[1], f"cannot read the header of {source / CARD}")
        card = ModelCard(text)
    except (ValueError, TypeError, RecursionError, YAMLError) as error:
        raise UserError(f"cannot read the header of {source / CARD}: {one_line(error)}") from None
    _check_licence(str(source / CARD), card.data.get("license"), licence)
    card.text = _readdressed(card.text, source, address)
    with atomic_write(folder / CARD) as path:
        card.save(path)


def _readdressed(text: str, source: Path, address: str) -> str:
    """The text of a card with another address where people copy it; prose may still say where the model came from.

    Args:
        text: of the card.
        source: the model's folder.
        address: the new one.
    """
    old = local_address(source)
    if stated := re.search(r'from_checkpoint\(("(?:[^"\\]|\\.)*")\)', text):
        text = text.replace(stated[0], f"from_checkpoint({python_text(address)})")
        with contextlib.suppress(ValueError):  # somebody has written something else
            old = json.loads(stated[1])
    option = re.compile(rf"--weights {re.escape(shell_text(old))}(?!\S)")
    return option.sub(lambda _: f"--weights {shell_text(address)}", text)


def _check_licence(path: str, stated: str | None, given: str) -> None:
    if stated is not None and one_line(stated) != one_line(given):  # as the header of a card has it
        raise UserError(f"{path} says that its licence is {stated}, and --license says {given}")


def usable_config(file: checkpoint.File, config_file: str = "") -> DictConfig:
    """The config of a detector, after building and loading it. Raises a UserError if others could not do so."""
    cfg = load_config(config_file) if config_file else config_of(file)
    Predictor(cfg, file, "cpu")
    return cfg


def _origin(file: checkpoint.File) -> str:
    """Where the weights came from: an address, or the name of a file without the folders it was in."""
    source = str(file.about.get("source", file.path))
    return source if "://" in source else Path(source).name


def local_address(folder: Path) -> str:
    """What the card of a model in a folder calls it, wherever the folder may go."""
    return f"path/to/{folder.resolve().name}"


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder whose files move to ``folder`` at the end, and only if there was no error.

    Args:
        folder: must be missing or empty; with ``overwrite`` it may have an older model, and nothing else.

    Raises:
        UserError: it has more than that, or cannot be written.
    """
    try:
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if others := [name for name in found if name not in FILES]:
            raise UserError(f"{folder} holds {preview(others)}: give a folder for the model alone")
        if found and not overwrite:
            raise UserError(f"{folder} exists: add --overwrite, or give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
            yield Path(partial)
            folder.mkdir(exist_ok=True)
            for path in Path(partial).iterdir():
                os.replace(path, folder / path.name)
    except OSError as error:
        raise UserError(
            f"cannot write {one_line(folder, PATH_LIMIT)}: {error.strerror or error}"
        ) from None
