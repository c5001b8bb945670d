"""Errors, files, digests and events behave as every other room relies on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core import digest, errors, events, files, paths
from builder.core.run import base_environment, mask


def test_an_error_carries_all_problems_with_place_and_hint() -> None:
    error = errors.ConfigError(
        [errors.Problem("unknown key", "a.yaml: os", "did you mean 'ox'?"), errors.Problem("no")]
    )
    assert error.exit_code == 2
    assert str(error) == "a.yaml: os: unknown key\n  -> did you mean 'ox'?\nno"


def test_a_typo_gets_a_suggestion_and_a_wild_guess_the_list() -> None:
    assert errors.did_you_mean("debian-21", ["debian-12", "rhel-9"]) == "did you mean 'debian-12'?"
    assert errors.did_you_mean("zzz", ["debian-12", "rhel-9"]) == "known: debian-12, rhel-9"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "manifest.json"
    files.write_atomic(target, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_lock_is_seen_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not files.is_locked(lock)
    with files.file_lock(lock):
        assert files.is_locked(lock)
    assert not files.is_locked(lock)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: object) -> None:
    again = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert digest.sha256_value(value) == digest.sha256_value(again)


def test_a_tree_digest_names_files_relative_and_ignores_bytecode(tmp_path: Path) -> None:
    (tmp_path / "role/__pycache__").mkdir(parents=True)
    (tmp_path / "role/__pycache__/a.pyc").write_text("x")
    (tmp_path / "role/main.yml").write_text("x")
    assert list(digest.tree_digests(tmp_path, [tmp_path / "role"])) == ["role/main.yml"]


def test_events_are_whole_lines_with_secrets_masked(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    events.append_event(log, "note", "node", {"text": "token s3cret!"}, ["s3cret!"])
    with log.open("a") as file:
        file.write('{"half": ')
    lines = list(events.read_lines(log, 0))
    assert [json.loads(line)["data"] for line, _ in lines] == [{"text": "token ***"}]
    assert list(events.read_lines(log, lines[-1][1])) == []


def test_masking_leaves_short_words_alone() -> None:
    assert mask("a token abc", ["abc", ""]) == "a token abc"


def test_children_get_few_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("GOFLAGS", "-mod=vendor")
    assert not {"AWS_SECRET_ACCESS_KEY", "GOFLAGS"} & base_environment().keys()


def test_state_and_cache_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BUILD_IMAGE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.state_home() == tmp_path / "state"
    assert paths.state_home(tmp_path / "asked") == tmp_path / "asked"
    assert paths.cache_home() == tmp_path / "build-image"


def test_run_ids_sort_by_time_and_differ() -> None:
    first, second = paths.new_run_id(), paths.new_run_id()
    assert first != second
    assert first.split("-")[0] <= second.split("-")[0]
