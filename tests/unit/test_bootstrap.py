from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.build import bootstrap
from builder.build.aptsource import (
    Source,
    definition_sources,
    format_sources,
    host_sources,
    parse_sources,
    release_urls,
)
from builder.build.bootstrap import (
    BootstrapSpec,
    Tree,
    effective_sources,
    ensure_tree,
    family_key,
    find_tree,
    mmdebstrap_command,
    rootless_problems,
    tree_key,
)
from builder.core.digest import sha256_bytes
from builder.core.errors import PreflightError

SPEC = BootstrapSpec(
    distribution="debian",
    suite="bookworm",
    mirror="http://deb.example.org/debian",
    security_mirror="http://deb.example.org/debian-security",
    components=("main",),
    keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
    kernel="linux-image-amd64",
    packages=("cloud-init", "openssh-server"),
)
CLOUD_IMAGE_SOURCES = """\
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main
"""
HOST_SOURCES = """\
# made by hand
Types: deb
URIs: http://mirror.corp/debian
# a comment inside
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.corp/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://mirror.corp/other
Suites: bookworm
Components: main

Types: deb
URIs: https://download.example.com/linux/debian
Suites: bookworm
Components: stable
"""

word = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=8)
words = st.lists(word, min_size=1, max_size=3, unique=True).map(tuple)
sources = st.builds(
    Source,
    uris=words.map(lambda names: tuple(f"http://{name}/debian" for name in names)),
    suites=words,
    components=words,
    options=st.sampled_from([(), (("Signed-By", "/k.gpg"),), (("Signed-By", "/k.gpg"), ("Trusted", "yes"))]),
)


def etc(folder: Path, release: str, **files: str) -> Path:
    (folder / "apt/sources.list.d").mkdir(parents=True)
    (folder / "os-release").write_text(f'NAME="x"\nID={release}\n')
    for name, text in files.items():
        (folder / "apt" / {"list": "sources.list", "deb822": "sources.list.d/debian.sources"}[name]).write_text(text)
    return folder


@given(st.lists(sources, max_size=4))
def test_sources_survive_a_round_trip(given_sources: list[Source]) -> None:
    assert list(parse_sources(format_sources(given_sources))) == given_sources


@given(st.text(max_size=300))
def test_any_text_can_be_read_as_sources(text: str) -> None:
    for source in parse_sources(text):
        assert isinstance(source, Source)


def test_one_line_sources() -> None:
    text = """\
# deb http://a/ commented main
deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://m/debian bookworm main contrib # here
deb-src http://m/debian bookworm main
deb http://m/flat ./
"""
    assert parse_sources(text) == (
        Source(
            ("http://m/debian",),
            ("bookworm",),
            ("main", "contrib"),
            (("Signed-By", "/k.gpg"), ("Trusted", "yes")),
        ),
        Source(("http://m/flat",), ("./",), ()),
    )


def test_the_hosts_sources_are_narrowed_to_the_release(tmp_path: Path) -> None:
    found = host_sources(SPEC.archive, etc(tmp_path, "debian", deb822=HOST_SOURCES))
    assert [(source.uris, source.suites, source.components) for source in found] == [
        (("http://mirror.corp/debian",), ("bookworm", "bookworm-updates"), ("main",)),
        (("http://mirror.corp/debian-security",), ("bookworm-security",), ("main",)),
    ]
    assert "BEGIN PGP" in dict(found[0].options)["Signed-By"]
    assert parse_sources(format_sources(found)) == found


@pytest.mark.parametrize(
    ("release", "files"),
    [
        ("ubuntu", {"deb822": HOST_SOURCES}),
        ("debian", {}),
        ("debian", {"deb822": CLOUD_IMAGE_SOURCES}),
        ("debian", {"list": "deb http://m/debian trixie main\n"}),
        ("debian", {"list": "deb http://m/debian bookworm contrib\n"}),
        ("debian", {"list": "deb cdrom:[Debian]/ bookworm main\n"}),
    ],
)
def test_a_host_without_fitting_sources_gives_the_definitions_mirror(
    tmp_path: Path, release: str, files: dict[str, str]
) -> None:
    folder = etc(tmp_path, release, **files)
    assert host_sources(SPEC.archive, folder) == ()
    assert effective_sources(SPEC, folder) == format_sources(definition_sources(SPEC.archive))


def test_the_older_file_is_read_when_the_newer_one_does_not_fit(tmp_path: Path) -> None:
    folder = etc(tmp_path, "debian", deb822=CLOUD_IMAGE_SOURCES, list="deb http://m/debian bookworm main\n")
    assert host_sources(SPEC.archive, folder)[0].uris == ("http://m/debian",)


def test_a_file_that_was_asked_for_is_used_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.list"
    file.write_text("deb [trusted=yes] http://own/debian bookworm main\n")
    assert "http://own/debian" in effective_sources(replace(SPEC, apt_sources=file))
    file.write_text("deb http://own/debian trixie main\n")
    with pytest.raises(PreflightError, match="no source of suite bookworm"):
        effective_sources(replace(SPEC, apt_sources=file))
    with pytest.raises(PreflightError, match="cannot read"):
        effective_sources(replace(SPEC, apt_sources=tmp_path / "missing"))


def test_release_files_are_looked_for_at_the_main_suite() -> None:
    assert release_urls(definition_sources(SPEC.archive), "bookworm") == (
        "http://deb.example.org/debian/dists/bookworm/InRelease",
        "http://deb.example.org/debian/dists/bookworm/Release",
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"packages": ("openssh-server", "cloud-init")}, True),
        ({"packages": ("openssh-server", "cloud-init", "cloud-init")}, True),
        ({"max_age_days": 1}, True),
        ({"apt_sources": Path("/elsewhere")}, True),
        ({"packages": ("cloud-init",)}, False),
        ({"kernel": "linux-image-cloud-amd64"}, False),
        ({"secure_boot_packages": ("shim-signed",)}, False),
        ({"datasources": ("VMware",)}, False),
        ({"suite": "trixie"}, False),
        ({"mirror": "http://other/debian"}, False),
        ({"components": ("main", "contrib")}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_the_key_holds_what_decides_content_and_nothing_else(change: dict[str, Any], same: bool) -> None:
    key = tree_key(SPEC, "sources", {"customize.sh": "1"}, "r")
    assert (tree_key(replace(SPEC, **change), "sources", {"customize.sh": "1"}, "r") == key) is same


@given(st.tuples(word, word, word), st.tuples(word, word, word))
def test_different_inputs_have_different_keys(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    keys = [tree_key(SPEC, text[0], {"customize.sh": text[1]}, text[2]) for text in (one, two)]
    assert (keys[0] == keys[1]) is (one == two)


def test_only_the_release_separates_the_members_of_a_family() -> None:
    assert family_key(SPEC, "s", {}) == family_key(replace(SPEC, max_age_days=99), "s", {})
    assert tree_key(SPEC, "s", {}, "r1") != tree_key(SPEC, "s", {}, "r2")


class Mirror:
    """Stands in for the mirror and for mmdebstrap."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release: bytes | None = b"release 1"
        self.made = 0
        self.fails = False
        self.apt_options: tuple[str, ...] = ()
        self.proxies: set[str | None] = set()
        monkeypatch.setattr(httpx2, "get", self.get)
        monkeypatch.setattr(bootstrap, "_bootstrap", self.bootstrap)
        monkeypatch.setattr(bootstrap, "host_sources", lambda *_: ())
        monkeypatch.setattr(bootstrap, "host_apt_options", lambda: self.apt_options)

    def get(self, url: str, **how: Any) -> httpx2.Response:
        self.proxies.add(how["proxy"])
        if self.release is None:
            raise httpx2.ConnectError("no route")
        return httpx2.Response(200 if url.endswith("/InRelease") else 404, content=self.release)

    def bootstrap(self, spec: BootstrapSpec, sources: str, target: Path, *_: Any) -> None:
        if self.fails:
            target.mkdir()
            raise KeyboardInterrupt
        self.made += 1
        target.mkdir()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    return Mirror(monkeypatch)


def ensure(cache: Path, spec: BootstrapSpec = SPEC) -> tuple[Tree, list[str]]:
    notes: list[str] = []
    return ensure_tree(spec, cache, notes.append), notes


def make_older(tree: Tree, days: int) -> None:
    file = tree.path.parent / "tree.json"
    record = json.loads(file.read_text())
    then = datetime.now(UTC) - timedelta(days=days)
    file.write_text(json.dumps(record | {"created_at": then.strftime(bootstrap.TIME_FORMAT)}))


def test_a_tree_is_made_once(tmp_path: Path, mirror: Mirror) -> None:
    assert find_tree(SPEC, tmp_path)[0] is None
    tree, _ = ensure(tmp_path)
    again, notes = ensure(tmp_path)
    assert mirror.made == 1
    assert again == tree == find_tree(SPEC, tmp_path)[0]
    assert tree.path.parent == tmp_path / tree.key
    assert "is used" in notes[0]
    sources = format_sources(definition_sources(SPEC.archive))
    assert tree.key == tree_key(SPEC, sources, bootstrap._scripts(), sha256_bytes(b"release 1"))


def test_a_new_release_of_the_mirror_gives_a_new_tree(tmp_path: Path, mirror: Mirror) -> None:
    first, _ = ensure(tmp_path)
    mirror.release = b"release 2"
    assert "new release" in find_tree(SPEC, tmp_path)[1]
    second, _ = ensure(tmp_path)
    assert first.key != second.key
    assert first.path.exists()


def test_an_old_tree_is_made_again_and_the_old_one_kept_for_who_uses_it(tmp_path: Path, mirror: Mirror) -> None:
    tree, _ = ensure(tmp_path)
    make_older(tree, 7)
    assert "older than 7 days" in find_tree(SPEC, tmp_path)[1]
    again, _ = ensure(tmp_path)
    assert (mirror.made, again.path) == (2, tree.path)
    assert len(list(tmp_path.glob(f"{tree.key}.*/root"))) == 1
    assert find_tree(SPEC, tmp_path)[0] == again


def test_superseded_trees_are_deleted_a_day_after_their_time(tmp_path: Path, mirror: Mirror) -> None:
    tree, _ = ensure(tmp_path)
    make_older(tree, 9)
    ensure(tmp_path)
    assert [path.name for path in tmp_path.glob("*/tree.json")] == ["tree.json"]


def test_without_a_mirror_the_newest_tree_of_the_family_is_used(tmp_path: Path, mirror: Mirror) -> None:
    first, _ = ensure(tmp_path)
    make_older(first, 3)
    mirror.release = b"release 2"
    second, _ = ensure(tmp_path)
    mirror.release = None
    tree, notes = ensure(tmp_path)
    assert tree == second
    assert "does not answer" in notes[0]
    with pytest.raises(PreflightError, match="does not answer and no tree is cached"):
        ensure(tmp_path, replace(SPEC, packages=("other",)))


def test_nothing_is_left_of_a_tree_that_was_interrupted(tmp_path: Path, mirror: Mirror) -> None:
    mirror.fails = True
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("root", "expected"), [(0, "--mode=root"), (1000, "--mode=unshare")])
def test_the_command_follows_the_user(monkeypatch: pytest.MonkeyPatch, root: int, expected: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: root)
    command = mmdebstrap_command(SPEC, Path("/c/root"), Path("/h"), ['Acquire::http::Proxy "http://p"'])
    assert expected in command
    assert "--include=cloud-init,linux-image-amd64,openssh-server" in command
    assert '--aptopt=Acquire::http::Proxy "http://p"' in command
    assert command[-3:] == ["bookworm", "/c/root", "-"]


def test_what_a_rootless_bootstrap_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr(bootstrap, "which", lambda _: None)
    file = tmp_path / "subuid"
    assert len(rootless_problems(file)) == 2
    file.write_text("bob:1:2\nann:100000:65536\n")
    assert [problem.hint for problem in rootless_problems(file)] == ["apt install uidmap"]


@pytest.mark.parametrize(
    ("option", "proxy"),
    [
        ('Acquire::http::Proxy "http://proxy:3128"', "http://proxy:3128"),
        ('Acquire::http::Proxy "DIRECT"', None),
        ('Acquire::https::Proxy "http://proxy:3128"', None),
        ('Acquire::Check-Date "false"', None),
    ],
)
def test_the_mirror_is_asked_through_the_proxy_of_the_hosts_apt(
    tmp_path: Path, mirror: Mirror, option: str, proxy: str | None
) -> None:
    mirror.apt_options = (option,)
    find_tree(SPEC, tmp_path)
    assert mirror.proxies == {proxy}
