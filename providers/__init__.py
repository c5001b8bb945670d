"""One package for each infrastructure; this is the one list of them."""

from collections.abc import Mapping
from types import MappingProxyType

from builder.provider import Provider
from providers.qemu.provider import QemuProvider

PROVIDERS: Mapping[str, Provider] = MappingProxyType({provider.name: provider for provider in (QemuProvider(),)})
