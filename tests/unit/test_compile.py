from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from builder.build.compile import (
    Compilation,
    compilation,
    compile_module,
    executable_name,
    find_compiled,
    recorded_files,
)
from builder.core import paths
from builder.core.errors import BuildError, ConfigError, PreflightError
from builder.core.run import Completed, Spec
from builder.resolve.golang import Go
from builder.resolve.gomodule import (
    ModulePin,
    component_of,
    expand,
    go_environment,
    go_mod_text,
    module_facts,
    module_pin,
    pinned,
)
from builder.target.options import Options

GO = Go(Path("/opt/go/bin/go"), "go1.26.8")
UPSTREAM = """\
module k8s.io/kubernetes

go 1.24.0

godebug default=go1.24

godebug (
	winsymlink=0 // for Windows
)

require (
	k8s.io/api v0.0.0
	k8s.io/klog/v2 v2.130.1
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/kubelet => ./staging/src/k8s.io/kubelet
	example.org/fork => example.org/other v1.0.0
)
"""


class FakeCompiler:
    """Stands in for `go`: writes what it is asked to build, or what `answers` says."""

    def __init__(self, answers: Callable[[Sequence[str], Spec], str] | None = None) -> None:
        self.calls: list[tuple[list[str], Spec]] = []
        self.answers = answers

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        words = [str(word) for word in argv]
        self.calls.append((words, spec))
        text = self.answers(words, spec) if self.answers else self.build(words)
        return Completed(tuple(words), 0, text, (), 0.0)

    def build(self, words: Sequence[str]) -> str:
        out = Path(words[words.index("-o") + 1])
        for package in words[words.index("-o") + 2 :]:
            (out / executable_name(package)).write_text(package)
        return ""


def etcd(tmp_path: Path) -> Compilation:
    folder = tmp_path / "pin"
    folder.mkdir(exist_ok=True)
    return compilation(ModulePin("etcd", "v3.6.5", folder, "d" * 64), GO)


def test_every_pin_has_the_version_of_its_folder() -> None:
    found = []
    for name, facts in module_facts().components.items():
        if "{version}" not in facts.folder:
            continue
        for folder in sorted((paths.share("tools") / name).iterdir()):
            text = (folder / "go.mod").read_text()
            required = re.findall(rf"^(?:require )?\s*({re.escape(facts.module)}) (\S+)", text, re.MULTILINE)
            assert required == [(facts.module, folder.name)]
            assert (folder / "go.sum").is_file()
            for package in facts.commands.values():
                assert re.search(rf"^(tool )?\s*{re.escape(package)}$", text, re.MULTILINE), f"{folder}: {package}"
            found.append(f"{name} {folder.name}")
    assert {"kubernetes v1.34.3", "containerd v2.1.4", "cni v1.8.0", "etcd v3.6.5", "coredns v1.12.1"} <= set(found)


def test_packer_and_pause_are_pinned_without_asking_for_a_version() -> None:
    packer = pinned("packer")
    assert packer is not None
    assert packer.version == "v1.9.4"
    pause = pinned("pause", "3.10.1")
    assert pause is not None
    assert pause.lock_input.digest == f"sha256:{pause.digest}"
    assert pinned("packer", "v1.12.0") is None


def test_a_pins_digest_is_over_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "share", lambda _: tmp_path)
    folder = tmp_path / "pause"
    folder.mkdir()
    digests = set()
    for file, text in [("go.mod", "module x"), ("main.go", "package main"), ("main.go", "package other")]:
        (folder / file).write_text(text)
        pin = pinned("pause", "3.10")
        assert pin is not None
        digests.add(pin.digest)
    assert len(digests) == 3


def test_an_unknown_component_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'containerd'"):
        component_of("contanerd")
    with pytest.raises(ConfigError, match="etcd needs a version"):
        pinned("etcd")


def test_templates_are_filled_from_a_version() -> None:
    assert expand("{version} {number} {major}-{minor}-{patch}", "1.34.3") == "v1.34.3 1.34.3 1-34-3"
    with pytest.raises(ConfigError, match=r"'1\.34' is not a version"):
        expand("{version}", "1.34")


def test_the_go_mod_of_another_version_takes_published_staging_modules() -> None:
    text = go_mod_text("kubernetes", "v1.34.7", UPSTREAM)
    assert "require k8s.io/kubernetes v1.34.7\n" in text
    assert "\tk8s.io/api => k8s.io/api v0.34.7\n" in text
    assert "\tk8s.io/kubelet => k8s.io/kubelet v0.34.7\n" in text
    assert "example.org" not in text
    assert "go 1.24.0\n" in text
    assert "\tdefault=go1.24\n\twinsymlink=0\n" in text
    assert "\tk8s.io/kubernetes/cmd/kubeadm\n" in text


def test_modules_without_staging_are_required_together() -> None:
    text = go_mod_text("etcd", "v3.6.6", "module go.etcd.io/etcd/server/v3\n\ngo 1.24\n")
    assert "\tgo.etcd.io/etcd/etcdctl/v3 v3.6.6\n" in text
    assert "\tgo.etcd.io/etcd/server/v3 v3.6.6\n" in text
    assert "replace" not in text
    assert "godebug" not in text
    with pytest.raises(PreflightError, match="has no go line"):
        go_mod_text("etcd", "v3.6.6", "module x\n")


def test_another_version_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    upstream = tmp_path / "upstream.mod"
    upstream.write_text(UPSTREAM)

    def answer(words: Sequence[str], spec: Spec) -> str:
        assert spec.cwd is not None
        if "download" in words:
            return json.dumps({"GoMod": str(upstream)})
        (spec.cwd / "go.sum").write_text("sums")
        return ""

    fake = FakeCompiler(answer)
    first = module_pin("kubernetes", "v1.34.99", GO, fake)
    assert [words[1] for words, _ in fake.calls] == ["mod", "list", "list"]
    assert [spec.env["GOARCH"] for _, spec in fake.calls[1:]] == ["amd64", "arm64"]
    assert module_pin("kubernetes", "1.34.99", GO, fake).digest == first.digest
    assert len(fake.calls) == 3
    assert first.folder == tmp_path / "build-image/gomod/kubernetes/v1.34.99"


@pytest.mark.parametrize(
    ("returncode", "answer", "reason"),
    [
        (1, '{"Error": "k8s.io/kubernetes@v1.34.99: not found:\\n\\tno such version"}', "not found: no such version"),
        (1, "", "go: no network"),
    ],
)
def test_a_version_that_the_proxy_does_not_have_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int, answer: str, reason: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(argv: Sequence[str | Path], _: Spec) -> Completed:
        return Completed(tuple(map(str, argv)), returncode, answer, ("go: no network",), 0.0)

    with pytest.raises(PreflightError) as caught:
        module_pin("kubernetes", "v1.34.99", GO, refuse)
    problem = caught.value.problems[0]
    assert problem.what == f"the module cannot be had at this version: {reason}"
    assert problem.where == "k8s.io/kubernetes@v1.34.99"
    assert "GOPROXY" in problem.hint
    assert [path.name for path in (tmp_path / "build-image/gomod/kubernetes").iterdir()] == ["v1.34.99.lock"]


def test_a_proxy_that_lacks_a_dependency_is_a_preflight_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "upstream.mod").write_text(UPSTREAM)

    def answer(words: Sequence[str], spec: Spec) -> str:
        if "download" in words:
            return json.dumps({"GoMod": str(tmp_path / "upstream.mod")})
        raise BuildError(f"{spec.what} failed")

    with pytest.raises(PreflightError, match=r"resolution of k8s\.io/kubernetes v1\.34\.99 failed"):
        module_pin("kubernetes", "v1.34.99", GO, FakeCompiler(answer))


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("k8s.io/kubernetes/cmd/kubeadm", "kubeadm"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("github.com/hashicorp/packer", "packer"),
        ("example.org/x/v1", "v1"),
        ("example.org/x/v12", "x"),
    ],
)
def test_the_name_that_go_gives(package: str, name: str) -> None:
    assert executable_name(package) == name


def test_one_build_makes_all_commands_and_the_second_call_starts_nothing(tmp_path: Path) -> None:
    fake, notes = FakeCompiler(), list[str]()
    wanted = etcd(tmp_path)
    assert find_compiled(wanted, tmp_path / "modules") is None
    folder = compile_module(wanted, notes.append, cache=tmp_path / "modules", runner=fake)
    assert (folder / "etcd").read_text() == "go.etcd.io/etcd/server/v3"
    assert sorted(recorded_files(folder)) == ["etcd", "etcdctl", "etcdutl"]
    assert notes == ["compiling etcd v3.6.5: etcd, etcdctl, etcdutl"]
    (words, spec) = fake.calls[0]
    assert words[:6] == [str(GO.path), "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    assert spec.cwd == wanted.pin.folder
    assert compile_module(wanted, notes.append, cache=tmp_path / "modules", runner=fake) == folder
    assert len(fake.calls) == 1


def test_a_long_build_gives_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.build.compile.NOTE_SECONDS", 0)
    fake, notes = FakeCompiler(), list[str]()

    def build(words: Sequence[str], spec: Spec) -> str:
        assert spec.on_line is not None
        spec.on_line("internal/cpu")
        spec.on_line("go.etcd.io/etcd/server/v3")
        return fake.build(words)

    compile_module(etcd(tmp_path), notes.append, cache=tmp_path / "modules", runner=FakeCompiler(build))
    assert notes[-1] == "compiling etcd: 2 packages so far, now go.etcd.io/etcd/server/v3"


def test_the_environment_is_ours() -> None:
    env = go_environment("arm64")
    assert env["GOARCH"] == "arm64"
    assert env["CGO_ENABLED"] == "0"
    # Empty would mean: what `go env -w` has written.
    assert all(env.values())
    assert env["GOTOOLCHAIN"] == "local"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="left no server"):
        compile_module(etcd(tmp_path), print, cache=tmp_path / "modules", runner=FakeCompiler(lambda *_: ""))
    assert [path.suffix for path in (tmp_path / "modules").iterdir()] == [".lock"]


def test_the_key_follows_what_decides_the_binaries(tmp_path: Path) -> None:
    pin = ModulePin("kubernetes", "v1.34.3", tmp_path, "d" * 64)
    kept = compilation(pin, GO, "amd64", ["kubelet", "kubeadm"])
    assert kept.key == compilation(pin, GO, "amd64", ["kubeadm", "kubelet", "kubelet"]).key
    others = [
        compilation(pin, GO, "amd64", ["kubelet"]),
        compilation(pin, GO, "arm64", ["kubelet", "kubeadm"]),
        compilation(pin, Go(GO.path, "go1.27.0"), "amd64", ["kubelet", "kubeadm"]),
        compilation(ModulePin("kubernetes", "v1.34.3", tmp_path, "e" * 64), GO, "amd64", ["kubelet", "kubeadm"]),
        compilation(ModulePin("kubernetes", "v1.34.4", tmp_path, "d" * 64), GO, "amd64", ["kubelet", "kubeadm"]),
    ]
    assert len({kept.key, *(other.key for other in others)}) == 6
    assert compilation(pin, Go(Path("/elsewhere/go"), GO.version), "amd64", kept.commands).key == kept.key


def test_the_stamps_say_the_version(tmp_path: Path) -> None:
    flags = compilation(ModulePin("kubernetes", "v1.34.3", tmp_path, ""), GO).ldflags
    assert flags.startswith("-s -w -X ")
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert f"-X {package}.gitVersion=v1.34.3" in flags
        assert f"-X {package}.gitMinor=34" in flags
        assert f"-X {package}.gitTreeState=clean" in flags


def test_the_example_of_modules_names_pinned_versions() -> None:
    options = Options.model_validate_json(json.dumps({"containerd": {"source": "module", "version": "v2.1.4"}}))
    assert pinned("containerd", options.containerd.version) is not None
