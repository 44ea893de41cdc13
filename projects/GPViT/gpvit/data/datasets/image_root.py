"""The folder of the images of a COCO file, which does not state it.

:func:`find_image_root` searches the files of the dataset in these steps:

1. Find the folders in which every image exists under its name as written. If the names are
   ``a.png`` and ``b.png``, ``photos`` is one of them if it has ``photos/a.png`` and
   ``photos/b.png``.
2. If there is one, use it. If there are several, the images exist more than once. Apply these rules
   one after the other, and skip a rule that would leave no folder:

   a. keep only the folder of the JSON file itself;
   b. keep only folders whose path names the split of the JSON file, such as ``val``;
   c. keep only folders with ``images`` in their path.

   If more than one folder remains, raise an error.
3. If there is none, some names were written on another machine or by a program that changes names.
   Match them by the rules of :mod:`.image_names`, and use the first of these folders in which every
   name matches an image:

   a. the folder of the JSON file;
   b. folders named like the split, in alphabetical order;
   c. folders named ``images``, in alphabetical order;
   d. the complete dataset.

   If there is none, raise an error with the names that match no image of the complete dataset.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

from ...utils.errors import UserError, preview
from . import image_names
from .file_tree import Tree, inspect_json, split_of


def find_image_root(json_file: Path, tree: Tree | None = None, split: str | None = None) -> Path:
    """Return the folder that the image names in a JSON file are relative to.

    Args:
        json_file: in COCO format.
        tree: the files to search. By default, those below the folder of the JSON file, or below its
            parent if the name of the folder starts with annotation.
        split: the split of the JSON file, if known: "train" or "val".

    Raises:
        UserError: no folder has all images, or several do and none is preferred.
    """
    if tree is None:
        folder = json_file.absolute().parent
        tree = Tree(folder.parent if folder.name.startswith("annotation") else folder)
    names = set(map(os.path.normpath, inspect_json(json_file).names))
    if not names:  # the fault of the file is reported when it is read
        return json_file.parent
    json_folder = os.path.relpath(json_file.absolute().parent, tree.root.absolute())
    folders = _folders_with_all(names, tree)
    if not folders:
        return tree.root / _folder_by_matching(json_file, tree, split, json_folder)
    preferred = _preferred(folders, split, json_folder)
    if len(preferred) > 1:
        copies = preview([str(tree.root / folder) for folder in preferred])
        raise UserError(
            f"{json_file}: its images are in several folders, {copies}; keep one of them"
        )
    return tree.root / preferred[0]


def _folders_with_all(names: Collection[str], tree: Tree) -> list[str]:
    """Return the folders in which images of all these names exist (step 1), sorted.

    Args:
        names: normalized, without duplicates.
        tree: the files to search.
    """
    counts: Counter[str] = Counter()  # by folder: how many of the images exist in it
    for name in names:
        # The path train/images/a.png is the image images/a.png of the folder train/, but no image
        # ages/a.png: only complete names of folders count.
        for path in tree.by_name.get(os.path.basename(name), ()):
            if f"{os.sep}{path}".endswith(f"{os.sep}{name}"):
                counts[path.removesuffix(name)] += 1
    return [folder for folder in sorted(counts) if counts[folder] == len(names)]


def _preferred(folders: list[str], split: str | None, json_folder: str) -> list[str]:
    """Apply the rules of step 2 to the folders that have all images; at least one remains."""
    folders = [folder for folder in folders if os.path.normpath(folder) == json_folder] or folders
    if split is not None:
        folders = [folder for folder in folders if split_of(PurePath(folder)) == split] or folders
    return [folder for folder in folders if "images" in PurePath(folder).parts] or folders


def _folder_by_matching(json_file: Path, tree: Tree, split: str | None, json_folder: str) -> str:
    """Return the first folder in which every name of a JSON file matches an image (step 3).

    Args:
        json_file, tree, split: as in :func:`find_image_root`.
        json_folder: the folder of the JSON file, relative to the root of the tree.

    Raises:
        UserError: no folder has all images.
    """
    names = list(dict.fromkeys(inspect_json(json_file).names))
    # Best first. In a smaller folder, fewer images may be confused with each other, so the complete
    # tree (os.curdir) is the last resort.
    candidates = [json_folder, *_folders_by_name(tree, split), os.curdir]
    faults: dict[str, dict[str, str]] = {}  # by folder: the names without an image, and the reasons
    for folder in dict.fromkeys(candidates):
        prefix = "" if folder == os.curdir else f"{folder}{os.sep}"
        paths = [path.removeprefix(prefix) for path in tree.paths if path.startswith(prefix)]
        # Fewer files than images: skipped at once, since thousands of folders may be called images.
        if len(paths) < len(names) and folder != os.curdir:
            continue
        faults[folder] = _unmatched(names, tree.root / folder, paths)
        if not faults[folder]:
            return folder
    missing = []
    for name, fault in sorted(faults[os.curdir].items()):
        missing.append(name if fault == image_names.ABSENT else f"{name} ({fault})")
    raise UserError(
        f"{json_file}: {len(missing)} of its {len(names)} images are not in {tree.root} and its "
        f"subfolders: {preview(missing)}; searched for as written and by the last parts of their "
        "names"
    )


def _folders_by_name(tree: Tree, split: str | None) -> list[str]:
    """Return the folders of a tree that are named like a split, then those named images."""
    folders: set[str] = set()
    for path in tree.paths:
        folders.update(map(str, PurePath(path).parents))
    named_as_split, named_images = [], []
    for folder in sorted(folders):
        name = PurePath(folder).name
        if split and split_of(PurePath(name)) == split:
            named_as_split.append(folder)
        if name == "images":
            named_images.append(folder)
    return named_as_split + named_images


def _unmatched(names: Sequence[str], folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """Return the names that match no image of a folder, and the reasons.

    Args:
        names: as written in the annotations.
        folder: of the images.
        paths: of its files, relative to it.
    """
    existing = set(paths)
    taken = existing & set(map(os.path.normpath, names))
    missing = [name for name in names if os.path.normpath(name) not in taken]
    faults = {}
    for name, (path, fault) in image_names.match(missing, paths, taken).items():
        if fault:
            faults[name] = fault
        elif os.path.exists(folder / name) and not os.path.samefile(folder / name, folder / path):
            # As written, the name means another file, outside of the folder or hidden.
            faults[name] = "is a file outside of the dataset"
    return faults
