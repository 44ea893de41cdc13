"""Untrusted YAML: it is read as by yaml.safe_load, or refused at once with a one-line message."""

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from gpvit.utils import yaml_io
from gpvit.utils.errors import UserError
from gpvit.utils.yaml_io import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_yaml


@pytest.fixture(params=["c", "python"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """``read_yaml``, with and without PyYAML's C library."""
    with monkeypatch.context() as patch:
        if request.param == "python":
            patch.delattr(yaml, "CSafeLoader", raising=False)
        yield importlib.reload(yaml_io).read_yaml
    importlib.reload(yaml_io)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "names:\n  0: apple\n  1: 'no'\ntrain: ../train/images\nnc: 2\n",
        "a: 1.0e-05\nb: .inf\nc: -3\nd: null\ne: 2026-11-26\nf: !!str 3\ng: ! x\n"
        "h: 18446744073709551615",
        "<<: {a: 1}\nb: [1, {c: 2}]\na: 2",
        "\ufeffa: é\n",
        "a: é".encode("utf-16"),
        "long: " + "x" * 900_000,
        "- " * (MAX_DEPTH - 1) + "a",
    ],
)
def test_valid_yaml_is_read_as_by_safe_load(read: Callable, text: str | bytes) -> None:
    assert read(text, "data.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x]\nb: &b [*a, *a]\n", "line 1: has an anchor or alias"),
        ("a: 1\nb: *a\n", "line 2: has an anchor or alias"),
        ("a: &a\n  b: *a\n", "line 1: has an anchor or alias"),
        ("[" * 500_000, "line 1: is nested more than 50 levels deep"),
        ("- " * 400_000, "line 1: is nested more than 50 levels deep"),
        ("\n".join(" " * level + "a:" for level in range(1000)), "line 51: is nested more than 50"),
        ("{" * MAX_DEPTH + "[]" + "}" * MAX_DEPTH, "line 1: is nested more than 50 levels deep"),
        ("a\n\0", "control characters|special characters"),
        ("a: \ud800", "is not valid YAML"),
        (b"a: \xe9", "UTF-8|invalid continuation byte|invalid start byte|unexpected end"),
        ("a: 1\nb: 2\na: 3\n", "line 3: has the key a twice"),
        ("b: {c: 1, c: 2}", "line 1: has the key c twice"),
        ("1: a\n1.0: b", "line 2: has the key 1.0 twice"),
        ("[a]: 1", "line 1: found unhashable key"),
        ("a: [1, 2", "line [12]: "),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ("--- a\n--- b\n", "expected a single document"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: has the tag .*os.system, which is not",
        ),
        ("%TAG ! tag:yaml.org,2002:python/\n---\n!name:os.system x", "line 3: has the tag"),
        ("a: !foo x", "line 1: has the tag !foo"),
        ("a: " + "1" * 10_000, "line 1: has a number of 10000 characters"),
        ("a: !!int '" + "1" * 10_000 + "'", "line 1: has a number of 10000 characters"),
        ("a: 1" + ":1" * 400_000, "line 1: has a number of"),
        ("a: 1" + ":1" * 400_000 + ".5", "line 1: has a number of"),
        # Python's hash of an integer is its remainder modulo 2**61 - 1: these keys all collide.
        ("\n".join(f"{n * (2**61 - 1)}: a" for n in range(1, 30_000)), "line 44: has a number of"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!int abc", "is not valid YAML"),
        ("a: !!bool abc", "does not match its tag"),
        ("a: !!timestamp abc", "does not match its tag"),
        ("x" * (MAX_BYTES + 1), "has 1000001 bytes, more than the maximum of 1000000"),
        ("é" * (MAX_BYTES // 2 + 1), "has 1000002 bytes"),
        ('"\\e[2J": 1\n"\\e[2J": 2', r"the key \\x1b\[2J twice"),
    ],
)
def test_unsafe_or_invalid_yaml_raises_quickly_in_one_line(
    read: Callable, text: str | bytes, reason: str
) -> None:
    start = time.process_time()
    with pytest.raises(UserError, match=reason) as raised:
        read(text, "data\n.yaml")
    message = str(raised.value)
    assert message.startswith(r"data\n.yaml: ") and message.isprintable() and len(message) < 300
    assert time.process_time() - start < 1


def test_too_many_values_raise_before_construction() -> None:
    with pytest.raises(UserError, match=f"line {MAX_VALUES}: has more than {MAX_VALUES} values"):
        read_yaml("- []\n" * (MAX_BYTES // 5), "data.yaml")
    assert len(read_yaml("- a\n" * (MAX_VALUES - 1), "data.yaml")) == MAX_VALUES - 1


def test_two_thousand_class_names_are_accepted() -> None:
    names = dict(enumerate(map("class {}".format, range(2000))))
    assert read_yaml(yaml.safe_dump({"names": names}), "data.yaml") == {"names": names}
    assert re.match(r"\d", yaml.safe_dump(names))  # numbers as keys


def test_non_utf8_file_name_survives_yaml_round_trip() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert read_yaml(yaml.safe_dump({"output_dir": name}), "x") == {"output_dir": name}
    with pytest.raises(UserError, match="line 2: has an anchor"):
        read_yaml(yaml.safe_dump({"output_dir": name}) + "b: &a 1", "x")
