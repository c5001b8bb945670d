"""Packages of a deb repository in the shape of pkgs.k8s.io: the revision is looked up, never guessed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import httpx2
import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from builder.core.errors import PreflightError
from builder.model.lock import Lock
from builder.model.target import Target
from builder.resolve.kubernetes import package_versions, repository_address, repository_key
from builder.resolve.packages import (
    Repository,
    choose_packages,
    package_inputs,
    parse_index,
    read_repository,
    repository_url,
)
from builder.resolve.web import Web
from builder.target.options import KubernetesOptions
from builder.target.version import KubernetesVersion, parse_version

URL = "https://pkgs.example/core:/stable:/v1.34/deb/"
KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQ\n-----END PGP PUBLIC KEY BLOCK-----\n"
DEPENDS = {"kubelet": "iptables (>= 1.4.21), kubernetes-cni (>= 1.2.0), mount", "kubeadm": "cri-tools (>= 1.30.0)"}


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3):
        yield


def entry(name: str, version: str, arch: str = "amd64") -> str:
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: K <k@example.org>\n"
        f"Depends: {DEPENDS.get(name, 'libc6')}\nFilename: {arch}/{name}_{version}_{arch}.deb\nSize: 10\n"
        f"SHA256: {'ab' * 32}\nDescription: a program\n of two lines\n .\n Homepage: not a field\n\n"
    )


def index(*versions: str, names: tuple[str, ...] = ("kubeadm", "kubelet", "kubectl")) -> str:
    rows = [entry(name, version, arch) for name in names for version in versions for arch in ("amd64", "arm64")]
    rows += [entry("cri-tools", version) for version in ("1.34.0-1.1", "1.9.0-1.1")]
    return "".join([*rows, entry("kubernetes-cni", "1.7.1-1.1"), entry("kubernetes-cni", "1.10.0-1.1")])


def repository(text: str) -> Repository:
    return Repository(URL, f"{URL}Release.key", tuple(parse_index(text, "amd64")))


def web(files: dict[str, bytes | int | Exception]) -> Web:
    def answer(request: httpx2.Request) -> httpx2.Response:
        found = files.get(str(request.url), 404)
        if isinstance(found, Exception):
            raise found
        return httpx2.Response(found) if isinstance(found, int) else httpx2.Response(200, content=found)

    return Web(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))


def choose(text: str, version: str, with_crictl: bool = False) -> dict[str, str]:
    chosen = choose_packages(repository(text), parse_version(version), with_crictl)
    return {name: package.version for name, package in chosen.items()}


def test_the_newest_common_revision_and_what_the_repository_itself_has_of_the_dependencies() -> None:
    assert choose(index("1.34.2-1.1", "1.34.3-1.1", "1.34.3-2.1"), "v1.34.3") == {
        "kubeadm": "1.34.3-2.1",
        "kubelet": "1.34.3-2.1",
        "kubectl": "1.34.3-2.1",
        "cri-tools": "1.34.0-1.1",
        "kubernetes-cni": "1.10.0-1.1",
    }


def test_a_revision_that_not_all_three_have_is_not_taken() -> None:
    text = index("1.27.0-1.1") + entry("kubeadm", "1.27.0-2.1") + entry("kubelet", "1.27.0-2.1")
    assert choose(text, "v1.27.0")["kubelet"] == "1.27.0-1.1"


def test_revisions_are_compared_as_debian_does() -> None:
    assert choose(index("1.27.0-9.1", "1.27.0-10.1"), "v1.27.0")["kubeadm"] == "1.27.0-10.1"


def test_a_pre_release_is_found_under_its_debian_name() -> None:
    assert choose(index("1.35.0~rc.0-1.1", "1.35.0-1.1"), "v1.35.0-rc.0")["kubeadm"] == "1.35.0~rc.0-1.1"


def test_another_version_is_never_taken_for_the_asked_one() -> None:
    with pytest.raises(PreflightError) as caught:
        choose(index("1.34.0-1.1", "1.34.1-1.1", "1.34.2-1.1", "1.34.4-1.1", "1.34.30-1.1"), "v1.34.3")
    text = str(caught.value)
    assert f"{URL}: v1.34.3 is not in the repository" in text
    assert "nearest: v1.34.0, v1.34.1, v1.34.2, v1.34.4, v1.34.30" in text


def test_no_common_revision_says_what_each_has() -> None:
    text = entry("kubeadm", "1.34.3-1.1") + entry("kubelet", "1.34.3-2.1")
    with pytest.raises(PreflightError, match=r"kubeadm: 1\.34\.3-1\.1; kubelet: 1\.34\.3-2\.1; kubectl: none"):
        choose(text, "v1.34.3")


def test_crictl_comes_when_asked_for_even_if_nothing_depends_on_it() -> None:
    text = index("1.34.3-1.1").replace("cri-tools (>= 1.30.0)", "libc6")
    assert "cri-tools" not in choose(text, "v1.34.3")
    assert choose(text, "v1.34.3", with_crictl=True)["cri-tools"] == "1.34.0-1.1"


@given(st.sets(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8), st.integers(0, 31))
def test_what_is_chosen_is_there_and_no_newer_revision_is(versions: set[tuple[int, int]], patch: int) -> None:
    text = "".join(entry(n, f"1.34.{p}-{r}.1") for p, r in versions for n in ("kubeadm", "kubelet", "kubectl"))
    there = [revision for found, revision in versions if found == patch]
    if there:
        assert choose(text, f"v1.34.{patch}")["kubelet"] == f"1.34.{patch}-{max(there)}.1"
    else:
        with pytest.raises(PreflightError, match="nearest: v1"):
            choose(text, f"v1.34.{patch}")


def test_only_the_architecture_counts() -> None:
    packages = list(parse_index(entry("a", "1", "arm64") + entry("b", "1", "all") + entry("c", "1"), "amd64"))
    assert [package.name for package in packages] == ["b", "c"]
    assert packages[1].digest == "ab" * 32
    assert packages[1].file == "amd64/c_1_amd64.deb"


def test_the_index_is_read_plain_or_compressed() -> None:
    text = index("1.34.3-1.1").encode()
    plain = read_repository(URL, "", "amd64", web({f"{URL}Packages": text, f"{URL}InRelease": b""}))
    packed: dict[str, bytes | int | Exception] = {
        f"{URL}Packages.gz": gzip.compress(text),
        f"{URL}Release.gpg": b"",
    }
    assert plain == read_repository(URL, "", "amd64", web(packed))
    assert plain.key_url == f"{URL}Release.key"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "there is no deb repository: neither Packages nor Packages.gz"),
        ({f"{URL}Packages.gz": b"no gzip"}, "the index is damaged"),
        ({f"{URL}Packages": b"\xff\xfe"}, "the answer is not text"),
        (
            {f"{URL}Packages": index("1.34.3-1.1").encode()},
            "the repository is not signed: neither InRelease nor Release.gpg",
        ),
        (
            {f"{URL}Packages": entry("kubeadm", "1.34.3-1.1", "arm64").encode(), f"{URL}InRelease": b""},
            "the index has no package for amd64",
        ),
        ({f"{URL}Packages": 503}, "the server is busy (503)"),
        ({f"{URL}Packages": 403}, "the server answers 403 Forbidden"),
        (
            {f"{URL}Packages": httpx2.ConnectError("no route")},
            "it does not answer: no route\n  -> is this machine online?",
        ),
    ],
)
def test_a_repository_that_cannot_be_read_is_named(files: dict[str, bytes | int | Exception], words: str) -> None:
    with pytest.raises(PreflightError) as caught:
        read_repository(URL, "", "amd64", web(files))
    assert words in str(caught.value)
    assert URL in str(caught.value)


def test_a_busy_server_is_asked_again() -> None:
    answers = iter([503, 503, 200])
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(next(answers), content=b"x")))
    assert Web(lambda: client).read(f"{URL}Packages") == b"x"


def test_the_address_of_a_series() -> None:
    version = parse_version("v1.34.3+vmware.1")
    assert repository_url("https://x/{series}/deb", version) == "https://x/v1.34/deb/"
    with pytest.raises(PreflightError, match=r"kubernetes\.repository: \./repo/ is not an http"):
        repository_url("./repo", version)


def test_the_lock_of_packages_and_what_ansible_gets_from_it() -> None:
    source = repository(index("1.34.3-1.1"))
    chosen = choose_packages(source, KubernetesVersion(1, 34, 3), with_crictl=True)
    inputs = package_inputs(source, chosen, KEY.encode())
    target = Target(os="debian-12", kubernetes="v1.34.3", infra="qemu")
    lock = Lock(target=target, flavour="upstream", inputs=tuple(inputs))
    kubeadm = lock.find("package", "kubeadm")
    assert kubeadm is not None
    assert (kubeadm.version, kubeadm.revision) == ("1.34.3", "1.34.3-1.1")
    assert kubeadm.url == f"{URL}amd64/kubeadm_1.34.3-1.1_amd64.deb"
    assert package_versions(lock)["kubernetes-cni"] == "1.10.0-1.1"
    assert repository_address(lock) == URL
    assert repository_address(Lock(target=target, flavour="upstream", inputs=())) == ""


def test_the_key_of_the_repository() -> None:
    options = KubernetesOptions(repository="https://pkgs.example/core:/stable:/{series}/deb/")
    version = parse_version("v1.34.3")
    assert repository_key(options, version, web({f"{URL}Release.key": KEY.encode()})) == KEY
    with pytest.raises(PreflightError, match=r"signing key is not there\n  -> name it with kubernetes\.repository_key"):
        repository_key(options, version, web({}))
    with pytest.raises(PreflightError, match="it is no armored public key"):
        repository_key(options, version, web({f"{URL}Release.key": b"binary"}))
