"""Reading untrusted YAML: class names, configs that come with weights.

PyYAML's loaders have no limits: aliases to aliases expand a few lines to gigabytes, a number in
base 60 takes hours to convert, and the first of two equal keys is lost silently. Datasets and
configs need none of this.
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
# Characters of a number. Python refuses to convert integers of more than 4300 digits, and large
# integers can be chosen to have equal hashes, which makes a dict of them slow.
MAX_NUMBER = {"tag:yaml.org,2002:int": 20, "tag:yaml.org,2002:float": 40}

_NAMES = "binary bool float int map null omap pairs seq set str timestamp"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _NAMES.split()}
_MERGE = "tag:yaml.org,2002:merge"  # of the key "<<"
# PyYAML can be built without the C library.
_CLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A byte of a file name that is not UTF-8 is a surrogate, which PyYAML writes as "\udc80" to
# "\udcff"; the C library refuses to read surrogates.
_SURROGATE = re.compile(r"\\u[dD][89A-Fa-f]")


def read_yaml(
    text: str | bytes, source: str, max_values: int = MAX_VALUES, *, numbers: bool = True
) -> Any:
    """Parse a YAML document as ``yaml.safe_load`` does; return None if it is empty.

    Args:
        text: of at most :data:`MAX_BYTES` and :data:`MAX_DEPTH` levels.
        source: where it comes from, for messages.
        max_values: maximum number of values and keys.
        numbers: whether to convert numbers. Without conversion they remain text as written, such as
            010, which YAML reads as 8.

    Raises:
        UserError: the text exceeds these limits, is not valid YAML, or has aliases, anchors,
            duplicate keys, tags that are not defined by YAML, or numbers that are too long. The
            message is one line and includes the line number.
    """
    try:
        size = len(text) if isinstance(text, bytes) else len(text.encode())
        if size > MAX_BYTES:
            raise UserError(
                f"{one_line(source, 1000)}: has {size} bytes, more than the maximum of {MAX_BYTES}"
            )
        fast = _SURROGATE.search(text if isinstance(text, str) else text.decode("latin1")) is None
        _check_events(text, _CLoader if fast else yaml.SafeLoader, max_values)
        loaders = (_FastLoader, _Loader) if numbers else (_FastTextLoader, _TextLoader)
        return yaml.load(text, loaders[0] if fast else loaders[1])
    except yaml.YAMLError as error:
        raise UserError(f"{one_line(source, 1000)}: {_reason(error, text)}") from None
    except (ValueError, OverflowError) as error:  # for example a date such as 2001-99-99
        raise UserError(f"{one_line(source, 1000)}: is not valid YAML: {one_line(error)}") from None
    except (TypeError, LookupError, AttributeError):  # raised by PyYAML for "!!bool abc"
        raise UserError(
            f"{one_line(source, 1000)}: has a value that does not match its tag"
        ) from None


class _UniqueKeys:
    """Mixin for loaders that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Listed first: the call below adds the keys that "<<" merges in, which may be repeated.
        keys = [key for key, _ in node.value if key.tag != _MERGE]
        mapping = super().construct_mapping(node, deep)  # type: ignore[misc]
        seen = set()
        for key in keys:
            value = self.construct_object(key, deep=True)  # type: ignore[attr-defined]  # cached
            if value in seen:
                raise _refused(f"has the key {one_line(value, 40)} twice", key)
            seen.add(value)
        return mapping


class _Loader(_UniqueKeys, yaml.SafeLoader):
    pass


class _FastLoader(_UniqueKeys, _CLoader):  # type: ignore[misc, valid-type]
    pass


class _TextLoader(_Loader):
    pass


class _FastTextLoader(_FastLoader):
    pass


for _loader in (_TextLoader, _FastTextLoader):
    for _tag in MAX_NUMBER:
        _loader.add_constructor(_tag, _loader.construct_scalar)


def _check_events(text: str | bytes, loader_class: Any, max_values: int) -> None:
    """Raise a YAMLError for a text that must not be constructed.

    The parser yields one small event per value, before anything is built from them.
    """
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
            if event.anchor is not None:  # the name of an anchor or of an alias
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
                if tag is None or tag == "!":  # not explicit: it follows from the value
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
    """Return what is wrong and in which line, without the excerpt in PyYAML's message."""
    if isinstance(error, yaml.reader.ReaderError):
        content = text if isinstance(text, bytes) else text.encode(errors="replace")
        return _unreadable(error, content)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if problem.startswith("but "):  # "expected X", "but found Y"
        problem = f"{getattr(error, 'context', '')}, {problem}"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return line + one_line(problem)


def _unreadable(error: yaml.reader.ReaderError, text: bytes) -> str:
    """Return what is wrong with the characters of a text that could not be parsed at all."""
    position, problem = error.position, error.reason
    if not text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text.decode()
        except UnicodeDecodeError as undecodable:  # PyYAML's message does not name the encoding
            position = undecodable.start
            problem = f"byte {text[position]:#x} is not UTF-8; save it as UTF-8"
    line_breaks = re.findall(rb"\r\n|\r|\n", text[:position])
    return f"line {len(line_breaks) + 1}: {one_line(problem)}"
