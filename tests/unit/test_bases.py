"""A base is reused when nothing changed and it is young enough; otherwise the reason says why not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from builder.build.bases import BaseRecord, BaseWish, draft_folder, find_base, making_base, store_base
from builder.core.errors import BuildError
from builder.plan.fingerprint import Ingredients

INGREDIENTS = Ingredients(lock_digest="a", files={"qemu.pkr.hcl": "1"}, roles={"roles/base/x.yml": "1"}, tools={})
WISH = BaseWish("debian-12-qemu-vm", INGREDIENTS, 7)
MADE = "20261101T120000Z"
DAY_LATER = datetime(2026, 11, 2, 12, tzinfo=UTC)


def make(cache: Path, wish: BaseWish = WISH, created_at: str = MADE) -> Path:
    draft = draft_folder(cache, wish, cache / created_at)
    (draft / "base.qcow2").write_text("disk")
    record = BaseRecord(
        group=wish.group, ingredients=wish.ingredients, created_at=created_at, tree_key="t", public_key="k"
    )
    return store_base(cache, wish, draft, record).folder


def test_the_first_base_has_a_reason_too(tmp_path: Path) -> None:
    assert find_base(tmp_path, WISH) == (None, "none was made on this machine yet")


def test_a_young_base_is_reused(tmp_path: Path) -> None:
    make(tmp_path)
    base, why = find_base(tmp_path, WISH, DAY_LATER)
    assert base is not None
    assert base.disk.read_text() == "disk"
    assert why == "nothing changed since it was made 24 hours ago"


def test_an_old_base_is_not_and_the_newest_counts(tmp_path: Path) -> None:
    make(tmp_path)
    later = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert find_base(tmp_path, WISH, later)[1] == "the last one is 19 days old, more than base.max_age_days = 7"
    newest = make(tmp_path, created_at="20261119T120000Z")
    base, _ = find_base(tmp_path, WISH, later)
    assert base is not None
    assert base.folder == newest


def test_the_reason_names_what_changed(tmp_path: Path) -> None:
    make(tmp_path)
    changed = INGREDIENTS.model_copy(update={"roles": {"roles/base/x.yml": "2"}})
    assert find_base(tmp_path, BaseWish(WISH.group, changed, 7)) == (
        None,
        "since the last one, roles/base/x.yml changed",
    )


def test_a_layer_without_its_tree_is_no_base(tmp_path: Path) -> None:
    make(tmp_path)
    assert find_base(tmp_path, BaseWish(WISH.group, INGREDIENTS, 7, tree_key="t"), DAY_LATER)[0] is not None
    assert find_base(tmp_path, BaseWish(WISH.group, INGREDIENTS, 7, tree_key="u"), DAY_LATER)[0] is None


def test_a_broken_record_is_no_base(tmp_path: Path) -> None:
    (make(tmp_path) / "base.json").write_text('{"schema_version": 1}')
    assert find_base(tmp_path, WISH, DAY_LATER)[0] is None


def test_a_base_that_a_dead_process_began_goes_on_in_its_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "run1", tmp_path / "run2"
    first.mkdir()
    with pytest.raises(KeyError), making_base(tmp_path / "bases", WISH, first):
        raise KeyError  # stands for the death of the process: the pointer stays
    with making_base(tmp_path / "bases", WISH, second) as folder:
        assert folder == first
    with making_base(tmp_path / "bases", WISH, second) as folder:
        assert folder == second


def test_a_base_that_failed_starts_afresh(tmp_path: Path) -> None:
    first, second = tmp_path / "run1", tmp_path / "run2"
    first.mkdir()
    with pytest.raises(BuildError), making_base(tmp_path / "bases", WISH, first):
        raise BuildError("a role failed")
    with making_base(tmp_path / "bases", WISH, second) as folder:
        assert folder == second
