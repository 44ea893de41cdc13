"""Reading YAML that strangers may have written: names of classes, configs that come with weights.

YAML's own readers follow a text wherever it leads: aliases that name aliases make gigabytes of a few lines, a number
in base 60 takes hours, and of two equal keys the first is lost without a word. What a data set or a config needs has none
of this.
"""

import codecs
import re
from typing import Any

import yaml

from .errors import UserError
from .text import one_line

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50
# Characters of a number. Longer integers would be keys that slow a dict down, or of more digits than Python converts.
MAX_NUMBER = {"tag:yaml.org,2002:int": 20, "tag:yaml.org,2002:float": 40}

_NAMES = (
    "binary",
    "bool",
    "float",
    "int",
    "map",
    "null",
    "omap",
    "pairs",
    "seq",
    "set",
    "str",
    "timestamp",
)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _NAMES}
_MERGE = "tag:yaml.org,2002:merge"
_CLoader = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # PyYAML can be built without the C library
# Bytes of a file name that is not UTF-8, as PyYAML writes them; the C library does not read these.
_SURROGATE = re.compile(r"\\u[dD][89A-Fa-f]")


def read_yaml(
    text: str | bytes, source: str, max_values: int = MAX_VALUES, *, numbers: bool = True
) -> Any:
    """What a YAML text of one document holds, as ``yaml.safe_load`` gives it; None if it is empty.

    Args:
        text: of at most :data:`MAX_BYTES` and :data:`MAX_DEPTH` levels.
        source: where it comes from, for messages.
        max_values: how many values and keys there may be.
        numbers: whether numbers are numbers, and not the text that stands there, such as 010, which YAML takes for 8.

    Raises:
        UserError: the text is larger, is no YAML, or has aliases, anchors, a key twice, a tag that is not YAML's own or an
            absurd number. The message is one line, with the number of the line.
    """
    try:
        size = len(text) if isinstance(text, bytes) else len(text.encode())
        if size > MAX_BYTES:
            raise UserError(f"{one_line(source, 1000)}: is of {size} bytes, more than {MAX_BYTES}")
        fast = _SURROGATE.search(text if isinstance(text, str) else text.decode("latin1")) is None
        _check_events(text, _CLoader if fast else yaml.SafeLoader, max_values)
        loaders = (_FastLoader, _Loader) if numbers else (_FastTextLoader, _TextLoader)
        return yaml.load(text, loaders[0] if fast else loaders[1])
    except yaml.YAMLError as error:
        raise UserError(f"{one_line(source, 1000)}: {_reason(error, text)}") from None
    except (ValueError, OverflowError) as error:  # such as a date that no calendar has
        raise UserError(f"{one_line(source, 1000)}: is no YAML: {one_line(error)}") from None
    except (TypeError, LookupError, AttributeError):  # of PyYAML, which does not expect it
        raise UserError(f"{one_line(source, 1000)}: has a value that is not of its tag") from None


class _EachKeyOnce:
    """For a loader, which takes no key twice then."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != _MERGE]
        mapping = super().construct_mapping(node, deep)  # type: ignore[misc]
        # With merged keys there are more; all were made, and constructing one again only looks it up.
        seen = set()
        for key in own:
            value = self.construct_object(key, deep=True)  # type: ignore[attr-defined]
            if value in seen:
                raise _refused(f"has the key {one_line(value, 40)} twice", key)
            seen.add(value)
        return mapping


class _Loader(_EachKeyOnce, yaml.SafeLoader):
    pass


class _FastLoader(_EachKeyOnce, _CLoader):  # type: ignore[misc, valid-type]
    pass


class _TextLoader(_Loader):
    pass


class _FastTextLoader(_FastLoader):
    pass


for _loader in (_TextLoader, _FastTextLoader):
    for _tag in MAX_NUMBER:
        _loader.add_constructor(_tag, _loader.construct_scalar)


def _check_events(text: str | bytes, loader_class: Any, max_values: int) -> None:
    """Raises a YAMLError for what is not to be built. The events of a text come one by one and are small."""
    depth = values = 0
    loader = loader_class(text)
    try:
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if not isinstance(event, yaml.NodeEvent):
                continue
            values += 1
            if values > max_values:
                raise _refused(f"has more than {max_values} values", event)
            if event.anchor is not None:  # an alias has its name here, too
                raise _refused(
                    "has an anchor or alias (& or *), which are not allowed; write the value out",
                    event,
                )
            tag = event.tag
            if tag is not None and tag != "!" and tag not in _TAGS:
                raise _refused(f"has the tag {one_line(tag, 60)}, which is not allowed", event)
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _refused(f"is nested more than {MAX_DEPTH} levels deep", event)
            elif len(event.value) > min(MAX_NUMBER.values()):
                if tag is None or tag == "!":
                    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
                if len(event.value) > MAX_NUMBER.get(tag, MAX_BYTES):
                    raise _refused(
                        f"has a number of {len(event.value)} characters; put text in quotes", event
                    )
    finally:
        loader.dispose()


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _reason(error: yaml.YAMLError, text: str | bytes) -> str:
    """What is wrong and where, without the lines of the text that PyYAML shows."""
    if isinstance(error, yaml.reader.ReaderError):
        return _unreadable(
            error, text if isinstance(text, bytes) else text.encode(errors="replace")
        )
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if problem.startswith("but "):  # the second half of a sentence
        problem = f"{getattr(error, 'context', '')}, {problem}"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return line + one_line(problem)


def _unreadable(error: yaml.reader.ReaderError, text: bytes) -> str:
    """What is wrong with the characters of a text, before it is YAML."""
    position, problem = error.position, error.reason
    if not text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text.decode()
        except UnicodeDecodeError as undecodable:  # PyYAML names no encoding
            position, problem = (
                undecodable.start,
                f"byte {text[undecodable.start]:#x} is not UTF-8; save it as UTF-8",
            )
    breaks = re.findall(rb"\r\n|\r|\n", text[:position])
    return f"line {len(breaks) + 1}: {one_line(problem)}"
