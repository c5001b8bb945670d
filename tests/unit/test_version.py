"""Kubernetes versions: parsed with every vendor's suffix; a total order where a suffix follows its release."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core.errors import ConfigError
from builder.target.version import KubernetesVersion, component_key, parse_version, series_key

NUMBERS = st.integers(0, 200)
PRE = st.one_of(st.just(""), st.builds("{}.{}".format, st.sampled_from(["alpha", "beta", "rc"]), st.integers(0, 12)))
WORDS = st.from_regex(r"[a-z]{1,5}[0-9]{0,3}(\.[1-9][0-9]{0,2})?", fullmatch=True)
SUFFIX = st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from("+-"), WORDS)).filter(
    lambda text: not text[1:].startswith(("alpha", "beta", "rc"))
)
VERSIONS = st.builds(KubernetesVersion, NUMBERS, NUMBERS, NUMBERS, PRE, SUFFIX)


@pytest.mark.parametrize(
    ("text", "normal", "series", "flavour", "suffix"),
    [
        ("v1.34.3", "v1.34.3", "1.34", "upstream", ""),
        ("1.34.3", "v1.34.3", "1.34", "upstream", ""),
        ("v1.27.5+vmware.1", "v1.27.5+vmware.1", "1.27", "vmware", "+vmware.1"),
        ("v1.29.6-gke.1038001", "v1.29.6-gke.1038001", "1.29", "gke", "-gke.1038001"),
        ("v1.28.9-eks-5c4a308", "v1.28.9-eks-5c4a308", "1.28", "eks", "-eks-5c4a308"),
        ("v1.31.2+rke2r1", "v1.31.2+rke2r1", "1.31", "rke2", "+rke2r1"),
        ("v1.31.2+k3s1", "v1.31.2+k3s1", "1.31", "k3s", "+k3s1"),
        ("v1.30.1+fips", "v1.30.1+fips", "1.30", "fips", "+fips"),
        ("v1.35.0-rc.1", "v1.35.0-rc.1", "1.35", "upstream", ""),
        ("v1.35.0-rc.1-gke.5+x", "v1.35.0-rc.1-gke.5+x", "1.35", "gke", "-gke.5+x"),
    ],
)
def test_real_versions(text: str, normal: str, series: str, flavour: str, suffix: str) -> None:
    version = parse_version(text)
    assert (str(version), version.series, version.flavour, version.suffix) == (normal, series, flavour, suffix)


@pytest.mark.parametrize(
    "text", ["", "latest", "v1", "1.34.3.1", "v1.34.x", "01.34.3", "v1.34.03", "v1.34.3 ", "vv1.34.3"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a Kubernetes version"):
        parse_version(text, "--k8s")


def test_a_series_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"--k8s: '1.34' is a series, not a version\n  -> .* such as v1\.34\.0"):
        parse_version("1.34", "--k8s")


def test_order_of_real_versions() -> None:
    ordered = [
        "v1.29.6-alpha.1",
        "v1.29.6-alpha.10",
        "v1.29.6-beta.0",
        "v1.29.6-rc.2",
        "v1.29.6",
        "v1.29.6+vmware.9",
        "v1.29.6+vmware.10",
        "v1.29.6-gke.1038001",
        "v1.29.10",
        "v1.30.0-rc.0",
    ]
    versions = [parse_version(text) for text in ordered]
    assert all(one < two for one, two in itertools.pairwise(versions))


@given(VERSIONS)
def test_the_normal_form_comes_back(version: KubernetesVersion) -> None:
    assert parse_version(str(version)) == version
    assert parse_version(str(version).removeprefix("v")) == version


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_total(one: KubernetesVersion, two: KubernetesVersion, three: KubernetesVersion) -> None:
    assert (one < two) + (two < one) + (one == two) == 1
    if one <= two <= three:
        assert one <= three


@given(VERSIONS, SUFFIX)
def test_a_suffix_never_comes_before_its_release(version: KubernetesVersion, suffix: str) -> None:
    release = KubernetesVersion(version.major, version.minor, version.patch, version.pre)
    following = KubernetesVersion(version.major, version.minor, version.patch + 1, "alpha.0")
    assert release <= KubernetesVersion(version.major, version.minor, version.patch, version.pre, suffix) < following


@given(VERSIONS)
def test_a_pre_release_comes_before_its_release(version: KubernetesVersion) -> None:
    release = KubernetesVersion(version.major, version.minor, version.patch)
    if version.pre:
        assert version < release


def test_keys_of_series_and_components() -> None:
    assert series_key("1.9") < series_key("1.31")
    assert component_key("1.6.20~ds1-1+deb12u1") == (1, 6, 20)
    assert component_key("v2.1") == (2, 1, 0)
    assert component_key("debian 12") == (0, 0, 0)
