"""The classes of a dataset of label maps, from the file that lists them.

=================  ============================================================================
``classes.txt``    a class name per line, in the order of the class indices
``class_dict.csv``  lines NAME,R,G,B under the header name,r,g,b: the color of each class
``_classes.csv``   lines VALUE,NAME under the header Pixel Value,Class, by Roboflow
``labelmap.txt``   lines NAME:R,G,B:PARTS:ACTIONS, by CVAT
=================  ============================================================================

In the files with values or colors, a class named ignore, ignored, void, unlabeled or unlabelled is
none: its pixels do not count.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError
from ...utils.text import PATH_LIMIT, decoded, one_line
from ..label_maps import Color, pack_color
from .file_tree import Tree

IGNORED_NAMES = {"ignore", "ignored", "void", "unlabeled", "unlabelled"}
MAX_BYTES = 1 << 20  # of a list
MOST_CLASSES = 1024


class ClassList(NamedTuple):
    """The classes that a file lists.

    names: in the order of the class indices.
    values: class of each value of a label map, negative if it is ignored; None if not stated.
    colors: class of each packed color (:func:`.pack_color`), in the same way.
    """

    names: list[str]
    values: dict[int, int] | None = None
    colors: dict[int, int] | None = None

    @property
    def palette(self) -> list[Color]:
        """The color of each class; empty if none are stated."""
        colors: dict[int, Color] = {}
        for color, index in (self.colors or {}).items():
            colors.setdefault(index, (color >> 16, color >> 8 & 255, color & 255))
        return [colors[index] for index in range(len(self.names))] if colors else []


def find_class_list(tree: Tree) -> ClassList | None:
    """Return the classes that the files of a dataset list; None if there is no such file.

    Of lists with the same names, one with values or colors counts.

    Raises:
        UserError: a file cannot be used, or two of them list different classes.
    """
    lists: dict[Path, ClassList] = {}
    for name, parse in FILES.items():
        for relative in tree.by_name.get(name, ()):
            path = tree.root / relative
            lists[path] = read_class_list(path, parse)
    detailed = [path for path, listed in lists.items() if listed.values or listed.colors]
    chosen = next(iter(detailed or lists), None)
    if chosen is None:
        return None
    for path, listed in lists.items():
        has_same_names = listed.names == lists[chosen].names
        if not has_same_names or (path in detailed and listed != lists[chosen]):
            raise UserError(
                f"{one_line(chosen, PATH_LIMIT)} and {one_line(path, PATH_LIMIT)} list different "
                "classes; remove one of them"
            )
    return lists[chosen]


def read_class_list(path: Path, parse: Callable[[str], ClassList]) -> ClassList:
    """Read a file that lists classes.

    Raises:
        UserError: it cannot be read, has no class, or has a class, value or color twice.
    """
    shown = one_line(path, PATH_LIMIT)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        classes = parse(decoded(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{shown}: {error}; correct it") from None
    if not classes.names:
        raise UserError(f"{shown}: lists no class; correct it")
    if len(classes.names) > MOST_CLASSES:
        raise UserError(f"{shown}: lists more than {MOST_CLASSES} classes; correct it")
    for name in classes.names:
        if classes.names.count(name) > 1:
            raise UserError(f"{shown}: has the class {one_line(name)} twice; rename one of them")
    return classes


def _names_only(text: str) -> ClassList:
    return ClassList([line.strip() for line in text.splitlines() if line.strip()])


def _class_dict(text: str) -> ClassList:
    rows = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[0].lower() == "name"):
            continue
        rows.append((cells[0], _color(cells[1:4], number)))
    return _with_colors(rows)


def _roboflow(text: str) -> ClassList:
    values: dict[int, int] = {}
    names: list[str] = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if number == 1 or not any(cells):  # the header
            continue
        if len(cells) < 2 or not cells[0].isdecimal() or int(cells[0]) > 65535:
            raise ValueError(f"line {number} is not VALUE,NAME with a value up to 65535")
        if int(cells[0]) in values:
            raise ValueError(f"line {number} has the value {cells[0]} of a line before")
        values[int(cells[0])] = _index_of(cells[1], names)
    return ClassList(names, values=values)


def _cvat(text: str) -> ClassList:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            rows.append((name.strip(), _color(rest.partition(":")[0].split(","), number)))
    return _with_colors(rows)


def _with_colors(rows: list[tuple[str, Color]]) -> ClassList:
    names: list[str] = []
    colors: dict[int, int] = {}
    for name, color in rows:
        if pack_color(color) in colors:
            raise ValueError(f"the color {color} is that of two classes")
        colors[pack_color(color)] = _index_of(name, names)
    return ClassList(names, colors=colors)


def _color(cells: list[str], number: int) -> Color:
    """Return the color in three cells of a line."""
    values = [int(cell) for cell in map(str.strip, cells) if cell.isdecimal()]
    if len(values) != 3 or max(values) > 255:
        raise ValueError(f"line {number} has no color R,G,B of integers from 0 to 255")
    return values[0], values[1], values[2]


def _index_of(name: str, names: list[str]) -> int:
    """Append a class to the names, and return its index; -1 if its pixels are ignored."""
    if not name:
        raise ValueError("a class has no name")
    if name.lower() in IGNORED_NAMES:
        return -1
    names.append(name)
    return len(names) - 1


FILES: dict[str, Callable[[str], ClassList]] = {
    "classes.txt": _names_only,
    "class_dict.csv": _class_dict,
    "_classes.csv": _roboflow,
    "labelmap.txt": _cvat,
}
