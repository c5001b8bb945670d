"""Kubernetes versions with vendor suffixes: parsed by semver, ordered as releases, never as semver pre-releases."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import semver

from builder.core.errors import ConfigError

PRE_RELEASE = re.compile(r"(alpha|beta|rc)\.(0|[1-9][0-9]*)(?:-(.+))?")
PRE_RANKS = {"alpha": 0, "beta": 1, "rc": 2}
RELEASE_RANK = 3
SERIES = re.compile(r"v?\d+\.\d+")
# Names whose suffix has a digit in the name itself; every other flavour is the first word of its suffix.
NAMES_WITH_DIGITS = ("rke2", "k3s", "k0s")
UPSTREAM = "upstream"


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class KubernetesVersion:
    """One Kubernetes version. `pre` is `alpha.1`, `rc.2` or empty; `suffix` is the vendor's, with its `-` or `+`."""

    major: int
    minor: int
    patch: int
    pre: str = ""
    suffix: str = ""

    def __str__(self) -> str:
        return f"v{self.number}{self.suffix}"

    def __lt__(self, other: KubernetesVersion) -> bool:
        return self._key < other._key

    @property
    def number(self) -> str:
        """The version without v and without the vendor's suffix: `1.34.3`, `1.35.0-rc.1`."""
        return f"{self.major}.{self.minor}.{self.patch}" + (f"-{self.pre}" if self.pre else "")

    @property
    def series(self) -> str:
        """`1.34`."""
        return f"{self.major}.{self.minor}"

    @property
    def flavour(self) -> str:
        """Who made the release: `upstream`, or the name in the suffix: `vmware`, `gke`, `eks`, `rke2`, `fips`."""
        word = self.suffix[1:].lower()
        for name in NAMES_WITH_DIGITS:
            if word.startswith(name):
                return name
        letters = re.match(r"[a-z]+", word)
        return letters.group() if letters else (word or UPSTREAM)

    @property
    def _key(self) -> tuple[object, ...]:
        name, _, number = self.pre.partition(".")
        pre = (PRE_RANKS[name], int(number)) if self.pre else (RELEASE_RANK, 0)
        return (self.major, self.minor, self.patch, pre, _natural(self.suffix), self.suffix)


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key by which `+vmware.10` comes after `+vmware.9`; the empty text is the smallest."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def parse_version(text: str, where: str = "") -> KubernetesVersion:
    """Return the version that a text such as `v1.34.3`, `1.27.5+vmware.1` or `v1.29.6-gke.1038001` names.

    `alpha.N`, `beta.N` and `rc.N` are pre-releases; any other word behind `-` or `+` is a vendor's suffix. Raises
    ConfigError (with `where`) for anything else, also for a series without a patch number.
    """
    if SERIES.fullmatch(text):
        hint = f"write the full version, such as v{text.removeprefix('v')}.0"
        raise ConfigError(f"{text!r} is a series, not a version", where, hint)
    try:
        parsed = semver.Version.parse(text.removeprefix("v"))
    except (ValueError, TypeError):
        raise ConfigError(f"{text!r} is not a Kubernetes version", where, "write it like v1.34.3") from None
    build = f"+{parsed.build}" if parsed.build else ""
    pre = PRE_RELEASE.fullmatch(parsed.prerelease or "")
    if pre:
        vendor = f"-{pre.group(3)}" if pre.group(3) else ""
        name = f"{pre.group(1)}.{pre.group(2)}"
    else:
        vendor = f"-{parsed.prerelease}" if parsed.prerelease else ""
        name = ""
    return KubernetesVersion(parsed.major, parsed.minor, parsed.patch, name, vendor + build)


def series_key(series: str) -> tuple[int, ...]:
    """Return the numbers of a series such as `1.34`, to sort by."""
    return tuple(int(part) for part in series.split("."))


def component_key(version: str) -> tuple[int, ...]:
    """Return the numbers of a component's version such as `v2.1.4` or `1.6.20~ds1`, to compare by; 0 for what lacks."""
    numbers = re.match(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in numbers.groups()) if numbers else (0, 0, 0)
