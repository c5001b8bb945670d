"""YAML as people write it: lines are known, and what YAML 1.1 misreads is refused with words."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.core.errors import ConfigError
from builder.target.yamlfile import parse_yaml, read_yaml


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    return str(caught.value)


def test_every_value_has_its_line_and_its_written_text() -> None:
    file = parse_yaml("a:\n  b: 1.30\n  c: [x, yes]\n", "f.yaml")
    assert file.data == {"a": {"b": 1.3, "c": ["x", True]}}
    assert file.where(("a", "b")) == "f.yaml:2: a.b"
    assert file.where(("a", "c", 1)) == "f.yaml:3: a.c.1"
    assert file.texts["a", "b"] == "1.30"
    assert file.texts["a", "c", 1] == "yes"


def test_a_path_that_is_not_there_has_the_line_of_what_is_above() -> None:
    assert parse_yaml("a:\n  b: 1\n", "f.yaml").where(("a", "x", "y")) == "f.yaml:1: a.x.y"


def test_a_part_keeps_lines_and_texts() -> None:
    part = parse_yaml("a:\n  b:\n    c: on\n", "f.yaml").part("a", "b")
    assert part.data == {"c": True}
    assert (part.where(("c",)), part.texts[("c",)]) == ("f.yaml:3: c", "on")


def test_dates_stay_text_and_an_empty_file_is_an_empty_map() -> None:
    assert parse_yaml("ends: 2028-06-30\n", "f.yaml").data == {"ends": "2028-06-30"}
    assert parse_yaml("# nothing\n", "f.yaml").data == {}


def test_merge_keys_are_no_duplicates() -> None:
    file = parse_yaml("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  x: 3\n", "f.yaml")
    assert file.data["own"] == {"x": 3, "y": 2}
    assert file.where(("own", "x")) == "f.yaml:4: own.x"


def test_all_duplicate_keys_are_named_with_both_lines() -> None:
    text = refusal("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert "f.yaml:3:1: duplicate key 'a', first used in line 1" in text
    assert "f.yaml:2:11: duplicate key 'c', first used in line 2" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("on: 1\n", "f.yaml:1:1: YAML reads the key on as true or false\n  -> quote it: 'on'"),
        ("1.34: 1\n", "YAML reads the key 1.34 as a number\n  -> quote it: '1.34'"),
        ("? [a]\n: 1\n", "f.yaml:1:3: YAML reads the key … as something else than text"),
        ("a: 010\n", "f.yaml:1:4: YAML reads 010 as another number"),
        ("a: 12:30:45\n", "YAML reads 12:30:45 as another number"),
        ("a: .inf\n", ".inf is no number that can be used here"),
        ("a: [1\n", "f.yaml:2:1: not valid YAML"),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1: not valid YAML"),
        ("- a\n", "f.yaml:1: the top of the file is no map of keys"),
        ("a: !!python/object:os.system x\n", "f.yaml:1:4: not valid YAML"),
        ("a: &a [*a]\n", "its aliases refer to themselves"),
        ("a: 1\n---\nb: 2\n", "not valid YAML: but found another document"),
    ],
)
def test_traps_and_broken_files_are_refused_with_their_place(text: str, words: str) -> None:
    assert words in refusal(text)


def test_aliases_that_grow_without_bound_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)]
    assert "grow without bound" in refusal("\n".join(rows))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot read the file: No such file or directory"):
        read_yaml(tmp_path / "gone.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_yaml(latin)
