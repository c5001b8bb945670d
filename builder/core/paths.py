"""Where files are: in a checkout and in a wheel, state, caches, run folders."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def share(name: str) -> Path:
    """Return the folder `templates`, `playbooks` or `tools`: inside the wheel, else in the checkout."""
    packed = PACKAGE / "_share" / name
    return packed if packed.is_dir() else PACKAGE.parent / name


def data(name: str) -> Path:
    """Return a folder of built-in definitions, such as `os` or `kubernetes`."""
    return PACKAGE / "data" / name


def cache_home() -> Path:
    """Return the folder of content-addressed caches: $XDG_CACHE_HOME/build-image."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "build-image"


def state_home(asked: Path | None = None) -> Path:
    """Return the state folder: --state, else $BUILD_IMAGE_STATE, else $XDG_STATE_HOME/build-image."""
    if asked is not None:
        return asked.absolute()
    named = os.environ.get("BUILD_IMAGE_STATE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "build-image"


def config_files() -> tuple[Path, ...]:
    """Return the site files that are looked for, in order; the first that exists is used."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (Path("build-image.yaml"), home / "build-image" / "config.yaml")


def new_run_id() -> str:
    """Return `<utc>-<6 hex>`, such as 20261124T060000Z-1a2b3c; sorts by time."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)
