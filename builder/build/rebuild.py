"""rebuild.sh: the script in a stage folder that repeats its Packer build by hand, without this program."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.build.packer import Packer
from builder.build.render import RUN_VALUES, StageFolder, templates
from builder.core.files import write_atomic

NAME = "rebuild.sh"


def write_rebuild(
    folder: StageFolder,
    packer: Packer,
    helper: Sequence[str] = (),
    box: Path | None = None,
    payload: Sequence[str] = (),
) -> Path:
    """Write rebuild.sh of a rendered stage folder; return its path.

    `helper` is the command of the companion in the tree lane and `box` the folder it works in: the script gives it
    a port, a key and a folder of its own. `payload` is the command that makes the payload's disk, which a run does
    not keep.
    """
    path = folder.path / NAME
    write_atomic(path, rebuild_script(folder, packer, helper, box, payload), 0o755)
    return path


def rebuild_script(
    folder: StageFolder,
    packer: Packer,
    helper: Sequence[str] = (),
    box: Path | None = None,
    payload: Sequence[str] = (),
) -> str:
    """Return the text of rebuild.sh."""
    values = json.loads((folder.path / RUN_VALUES).read_text())
    disk = {str(values["payload"]): "$temporary/payload.img"} if payload else {}
    own = {str(folder.public_key): "$work/key/id.pub"}
    if box is not None:
        own[str(box)] = "$work/box"
    if "ssh_port" in values:
        own[str(values["ssh_port"])] = "$first"
    return (
        templates()
        .get_template("rebuild.sh.j2")
        .render(
            packer=shlex.quote(str(packer.path)),
            brings_plugins=packer.brings_plugins,
            secret_names=values["secret_names"],
            lane="tree" if "ssh_port" in values else "vm",
            payload=" ".join(shell_word(word, disk) for word in payload),
            helpers=[" ".join(shell_word(word, own) for word in helper)] if helper else [],
        )
    )


def shell_word(word: str, replaced: Mapping[str, str]) -> str:
    """Return a word for a shell in which some texts became variables.

    A text counts only as a whole word or a whole path, behind `:` or `=` and in front of `/` or `:`, so that a port
    never matches inside of a longer number.
    """
    texts = sorted(replaced, key=len, reverse=True)
    pattern = "|".join(re.escape(text) for text in texts)
    parts = re.split(rf"(?:^|(?<=[:=]))({pattern})(?=$|[/:])", word) if texts else [word]
    return (
        "".join(f'"{replaced[part]}"' if part in replaced else shlex.quote(part) if part else "" for part in parts)
        or "''"
    )
