"""Shared models: a folder or a repository on the Hugging Face Hub with all files of a detector.

It contains ``model.safetensors`` (the inference weights; its metadata has the class names, config,
versions and license), ``config.yaml`` (a readable copy of the config) and ``README.md`` (the model
card, see :mod:`.model_card`), and no code.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError
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
from .model_card import model_card, python_text, read_training_run, shell_text, versions

# The address in the Python example of a model card: a string literal that may contain escapes.
ADDRESS_IN_PYTHON = re.compile(r'from_checkpoint\(("(?:[^"\\]|\\.)*")\)')
# The YAML header of a model card, without the lines that delimit it.
HEADER = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)


def pull(address: str, folder: Path) -> checkpoint.File:
    """Download a model from the Hub, check that it can be used, and copy it to a folder.

    Raises:
        UserError: as :func:`download` does, or the model cannot be used.
    """
    uri, api = parsed(address), HfApi()
    with errors_in_one_line(address, api):
        snapshot = Path(
            api.snapshot_download(uri.id, revision=uri.revision, allow_patterns=list(FILES))
        )
    if not (snapshot / WEIGHTS).is_file():
        raise UserError(
            f"{address} has no {WEIGHTS}: give the address of a model that `gpvit share push` wrote"
        )
    file = checkpoint.read(str(snapshot / WEIGHTS))
    usable_config(file)
    for name in FILES:  # earlier downloads may have left other files in the cache
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, folder / name)
    return file


def push(folder: Path, address: str, *, private: bool, overwrite: bool) -> str:
    """Push a model that :func:`write` wrote to the Hub, in one commit.

    Args:
        folder: of the model.
        address: hf://USER/NAME; the repository is created if it does not exist.
        private: whether to create a private repository.
        overwrite: whether to replace an existing model, which stays in the repository's history.

    Returns:
        The URL of the model's page.

    Raises:
        UserError: not logged in, no permission, a model already exists, or the Hub is unreachable.
    """
    uri, api = parsed(address), HfApi()
    if uri.revision or uri.path_in_repo:
        raise UserError(f"{address} has a revision or a file: models are pushed to hf://USER/NAME")
    if get_token() is None:
        raise UserError(f"not logged in to {api.endpoint}: {LOG_IN}")
    with errors_in_one_line(address, api):
        _prepare_repository(api, uri.id, private, overwrite)
        operations = [CommitOperationAdd(name, str(folder / name)) for name in FILES]
        api.create_commit(uri.id, operations, commit_message="Model of GPViT for Detectron2")
    return f"{api.endpoint}/{uri.id}"


def _prepare_repository(api: HfApi, name: str, private: bool, overwrite: bool) -> None:
    """Create a repository, or check that a model may be pushed to the existing one."""
    try:
        repository = api.model_info(name)
    except RepositoryNotFoundError:
        # None, not False: an organization may create private repositories by default.
        api.create_repo(name, private=private or None)
        return
    if private and not repository.private:
        raise UserError(
            f"{name} exists and is public, which --private does not change: make it private on its "
            "page, or push to another repository"
        )
    remote_files = {file.rfilename for file in repository.siblings or []}
    existing = [name for name in FILES if name in remote_files]
    if existing and not overwrite:
        raise UserError(
            f"{name} already has {preview(existing)}: add --overwrite (its history keeps them), or "
            "push to another repository"
        )


def write(weights: str, folder: Path, *, license: str, address: str, config_file: str = "") -> None:
    """Write the files of a shared model.

    A model that this function wrote before is copied, with its model card as edited since.

    Args:
        weights: checkpoint, folder or address of the detector.
        folder: folder to write to.
        license: license of the weights, by its identifier on the Hub, such as "apache-2.0".
        address: the address or path that users load the detector from.
        config_file: config of the detector, if its checkpoint has none.

    Raises:
        UserError: the detector cannot be loaded from these files, or it states another license.
    """
    file = checkpoint.read(weights)
    _check_license(file.path, file.about.get("license"), license)
    cfg = usable_config(file, config_file)
    source = Path(file.path).parent
    if Path(file.path).name == WEIGHTS and all((source / name).is_file() for name in FILES):
        _copy(source, folder, license, address)
        return
    card = model_card(file, cfg, license, address, read_training_run(file))
    metadata: dict[str, Any] = {}
    if "iterations" in file.about:
        metadata["iterations"] = file.about["iterations"]
    if "palette" in file.about:
        metadata["palette"] = file.about["palette"]
    metadata |= {
        "classes": file.classes,
        "inference_config": inference_config(cfg),
        "versions": versions(file),
        "license": license,
        "source": _origin(file),
    }
    checkpoint.write(str(folder / WEIGHTS), file.weights, **metadata)
    with atomic_write(folder / CONFIG) as path:
        path.write_text(inference_config(cfg), encoding="utf-8")
    with atomic_write(folder / CARD) as path:
        card.save(path)


def _copy(source: Path, folder: Path, license_id: str, address: str) -> None:
    """Copy a shared model unchanged, except for the address in the examples of its card."""
    for name in FILES:
        with atomic_write(folder / name) as path:
            shutil.copyfile(source / name, path)
    try:
        text = (source / CARD).read_text(encoding="utf-8")
        header = HEADER.match(text)
        if header:
            read_yaml(header[1], f"cannot read the header of {source / CARD}")
        card = ModelCard(text)
    except (ValueError, TypeError, RecursionError, YAMLError) as error:
        raise UserError(f"cannot read the header of {source / CARD}: {one_line(error)}") from None
    _check_license(str(source / CARD), card.data.get("license"), license_id)
    card.text = _with_address(card.text, source, address)
    with atomic_write(folder / CARD) as path:
        card.save(path)


def _with_address(text: str, source: Path, address: str) -> str:
    """Replace the address in a card's examples; other text may still refer to the old one.

    Args:
        text: of the card.
        source: the model's folder.
        address: the new address.
    """
    old_address = local_address(source)
    example = ADDRESS_IN_PYTHON.search(text)
    if example:
        text = text.replace(example[0], f"from_checkpoint({python_text(address)})")
        with contextlib.suppress(ValueError):  # the example was edited
            old_address = json.loads(example[1])
    # Up to white space: "--weights a/b" must not match in "--weights a/b-large".
    option = re.compile(rf"--weights {re.escape(shell_text(old_address))}(?!\S)")
    # A function, because backslashes in a replacement string are escapes.
    return option.sub(lambda _: f"--weights {shell_text(address)}", text)


def _check_license(path: str, stated: str | None, given: str) -> None:
    """Raise a UserError if a file states another license than --license.

    They are compared as :func:`one_line` shows them, which is how a card's header states it.
    """
    if stated is not None and one_line(stated) != one_line(given):
        raise UserError(
            f"{path} states the license {stated}, but --license is {given}; give the license that "
            "the file states"
        )


def usable_config(file: checkpoint.File, config_file: str = "") -> DictConfig:
    """Return the config of a detector after loading the detector with it.

    Raises:
        UserError: the detector cannot be loaded.
    """
    cfg = load_config(config_file) if config_file else config_of(file)
    Predictor(cfg, file, "cpu")
    return cfg


def _origin(file: checkpoint.File) -> str:
    """Return where the weights came from: an address, or a file name without its folders."""
    source = str(file.about.get("source", file.path))
    return source if "://" in source else Path(source).name


def local_address(folder: Path) -> str:
    """Return the path that the examples of a model card in a folder use, wherever the folder is."""
    return f"path/to/{folder.resolve().name}"


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder, whose files are moved to ``folder`` if no error is raised.

    Args:
        folder: a folder that does not exist or is empty; with ``overwrite``, it may contain the
            files of a shared model, and no others.

    Raises:
        UserError: the folder contains other files, or cannot be written.
    """
    try:
        existing = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        others = [name for name in existing if name not in FILES]
        if others:
            raise UserError(
                f"{folder} contains {preview(others)}: give a folder for the model only"
            )
        if existing and not overwrite:
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
