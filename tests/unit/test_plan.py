"""A fingerprint changes when, and only when, an ingredient does; a plan says why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.model.lock import Input, Lock
from builder.model.target import Target
from builder.plan.actions import Found, PlanInputs, make_plan
from builder.plan.fingerprint import Ingredients, difference, file_digests

NAMES = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4)
INGREDIENTS = st.builds(Ingredients, lock_digest=st.text(max_size=3), files=NAMES, roles=NAMES, tools=NAMES)


@given(INGREDIENTS, INGREDIENTS)
def test_fingerprints_are_equal_if_and_only_if_the_ingredients_are(one: Ingredients, two: Ingredients) -> None:
    assert (one.fingerprint == two.fingerprint) == (one == two)


@given(INGREDIENTS, INGREDIENTS)
def test_every_difference_is_named_and_no_other(one: Ingredients, two: Ingredients) -> None:
    assert (difference(one, two) == "") == (one == two)


def test_the_reason_names_what_changed() -> None:
    old = Ingredients(lock_digest="a", files={"qemu.pkr.hcl": "1"}, roles={"roles/base/tasks/main.yml": "1"}, tools={})
    new = old.model_copy(update={"roles": {"roles/base/tasks/main.yml": "2"}})
    assert difference(old, new) == "roles/base/tasks/main.yml changed"


def test_file_digests_do_not_depend_on_order() -> None:
    assert file_digests({"b": b"1", "a": b"2"}) == file_digests({"a": b"2", "b": b"1"})


TARGET = Target(os="debian-12", kubernetes="v1.34.3", infra="qemu")
LOCK = Lock(target=TARGET, flavour="upstream", inputs=(Input(name="pause", kind="image", version="3.10.1"),))


def inputs(base: Found | None, lane: str = "vm") -> PlanInputs:
    return PlanInputs(
        lock=LOCK,
        lane=lane,
        base_fingerprint="b",
        fingerprint="f",
        payload=Found(False, "never prepared"),
        tree=Found(True, "made 2 days ago"),
        base=base,
        outputs=("debian-12-v1.34.3-qemu.qcow2",),
    )


def actions(plan_inputs: PlanInputs) -> list[tuple[str, str]]:
    return [(action.stage, action.action) for action in make_plan(plan_inputs).actions]


def test_a_base_that_is_there_is_reused_and_needs_no_tree() -> None:
    assert actions(inputs(Found(True, "made today"))) == [
        ("prepare", "run"),
        ("tree", "skip"),
        ("base", "reuse"),
        ("node", "run"),
        ("finish", "run"),
    ]


def test_the_tree_lane_stands_on_its_tree_even_with_a_base() -> None:
    assert ("tree", "reuse") in actions(inputs(Found(True, "made today"), lane="tree"))


def test_a_single_stage_build_has_no_base() -> None:
    plan = make_plan(inputs(None))
    assert "base" not in [action.stage for action in plan.actions]
    assert next(action.name for action in plan.actions if action.stage == "node") == "base and node in one build"


def test_every_action_has_a_reason() -> None:
    assert all(action.why for action in make_plan(inputs(Found(False, "none of this fingerprint"))).actions)


def test_the_time_of_resolution_does_not_count() -> None:
    assert LOCK.digest == LOCK.model_copy(update={"resolved_at": "2026-01-01T00:00:00Z"}).digest
    assert LOCK.digest != LOCK.model_copy(update={"flavour": "self-built"}).digest


def test_target_ids_leave_defaults_out_and_have_no_plus() -> None:
    assert TARGET.id == "debian-12-v1.34.3-qemu"
    other = Target(os="ubuntu-2204", kubernetes="v1.27.5+vmware.1", infra="vsphere", arch="arm64", firmware="efi")
    assert other.id == "ubuntu-2204-v1.27.5---vmware.1-vsphere-arm64-efi"
