"""What the base image starts from: a suite to bootstrap, a cloud image, or an installer ISO."""

from __future__ import annotations

from builder.core.errors import ConfigError, Problem
from builder.model.lock import Input, InputKind
from builder.resolve.binaries import check_local
from builder.resolve.request import ResolveRequest
from builder.resolve.web import local_path


def base_inputs(request: ResolveRequest) -> list[Input]:
    """Return the input `base`: kind `suite`, `disk` or `iso`.

    A local file is read and compared with its checksum; a URL is asked whether it is there. Raises ConfigError for
    options that do not go together, PreflightError for a file that is not there or not what it should be.
    """
    options = request.options.base
    if options.source == "bootstrap":
        return [_suite(request)]
    problems = []
    if not options.url:
        problems.append(Problem(f"base.source {options.source} needs a file", "base.url", "--set base.url=URL or path"))
    if options.sha256 is None:
        hint = "the publisher lists it; for a file of your own: sha256sum FILE"
        problems.append(Problem(f"base.source {options.source} needs its checksum", "base.sha256", hint))
    if problems or options.sha256 is None:
        raise ConfigError(problems)
    path = local_path(options.url)
    if path is None:
        request.web.check(options.url)
    else:
        check_local(path, options.sha256)
    name = options.url.rpartition("/")[2]
    kind: InputKind = "disk" if options.source == "image" else "iso"
    return [Input(name="base", kind=kind, version=name, url=options.url, digest=f"sha256:{options.sha256}")]


def _suite(request: ResolveRequest) -> Input:
    options, target = request.options.base, request.target
    if request.bootstrap is None:
        what = f"{target.os} cannot be bootstrapped for {target.infra}"
        raise ConfigError(what, "base.source", "--set base.source=image with base.url and base.sha256")
    if options.url or options.sha256:
        what = "base.url and base.sha256 have no effect with base.source bootstrap"
        raise ConfigError(what, "base.source", "--set base.source=image, or iso, or leave them out")
    # No digest of the mirror's state: how old it may be is base.max_age_days, not an identity.
    return Input(name="base", kind="suite", version=request.bootstrap.suite, url=request.bootstrap.mirror)
