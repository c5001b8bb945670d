#!/usr/bin/env python3
"""Measures what the project promises: ratios and medians, as a table and as JSON.

Nothing here is a test: the figures depend on the machine and on what else it does, so each is the median of several
rounds, the sides of a ratio take turns, and the load is told with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from builder.build.accelerator import choose  # noqa: E402
from builder.build.convert import to_raw  # noqa: E402
from builder.build.disk import extract_boot_files  # noqa: E402
from builder.check.guest import started  # noqa: E402
from builder.check.machine import DirectBoot, Firmware, GuestSpec  # noqa: E402

TARGET = ("--os", "debian-12", "--k8s", "v1.34.3", "--infra", "qemu", "--config", str(ROOT / "examples/modules.yaml"))
BUILD_IMAGE = (sys.executable, "-m", "builder.cli.main")


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: `value` is the median of `rounds`, in `unit` (s, MB, or x for a ratio); `aim` is what is promised."""

    name: str
    value: float
    unit: str
    rounds: tuple[float, ...]
    aim: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """How to measure: rounds for each figure, the image for boots, a folder for what is written."""

    rounds: int
    image: Path
    work: Path


@dataclass(frozen=True, slots=True)
class Built:
    """One run of `build-image`: wall seconds, peak memory of the orchestrator in MB, its run folder, stage times."""

    seconds: float
    peak_mb: float
    folder: Path
    stages: Mapping[str, float]


def figure(name: str, values: Sequence[float], unit: str, aim: str = "", note: str = "") -> Figure:
    """Make a row from the rounds of one measurement."""
    return Figure(
        name, round(statistics.median(values), 3), unit, tuple(round(value, 3) for value in values), aim, note
    )


def ratio(name: str, over: Sequence[float], under: Sequence[float], aim: str = "") -> Figure:
    """Make a row from two measurements that took turns: the ratio of their medians."""
    value = statistics.median(over) / statistics.median(under)
    note = f"{statistics.median(over):.1f} s / {statistics.median(under):.1f} s"
    pairs = tuple(round(a / b, 3) for a, b in zip(over, under, strict=True))
    return Figure(name, round(value, 3), "x", pairs, aim, note)


def wall(argv: Sequence[str | Path], **more: Any) -> float:
    """Return the wall seconds of a command that must succeed."""
    began = time.monotonic()
    done = subprocess.run([str(word) for word in argv], capture_output=True, check=False, cwd=ROOT, **more)
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed:\n{done.stdout.decode()[-2000:]}{done.stderr.decode()[-4000:]}")
    return time.monotonic() - began


def build(bench: Bench, *sets: str) -> Built:
    """Build the example image with settings; state and output are new, the caches are the user's own."""
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=bench.work))
    argv = [*BUILD_IMAGE, *TARGET, "--state", str(folder / "state"), "--output", str(folder / "out")]
    argv += [word for setting in sets for word in ("--set", setting)]
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.1)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"a build failed:\n{(folder / 'log').read_text()[-4000:]}")
    for disk in (folder / "out").rglob("*.qcow2"):
        disk.unlink()
    (run,) = (folder / "state").glob("runs/*/*")
    return Built(seconds, peak, run, stage_seconds(run / "events.jsonl"))


def peak_memory(pid: int) -> float:
    """Return the largest resident size of a process so far, in MB; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def stage_seconds(events: Path) -> dict[str, float]:
    """Return {stage: seconds} of a run."""
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    return {row["stage"]: row["data"]["seconds"] for row in rows if row["kind"] == "stage_end"}


def measure_cli(bench: Bench) -> list[Figure]:
    """How long a user waits for the first words."""
    rounds = max(bench.rounds, 5)
    helps = [wall([*BUILD_IMAGE, "--help"]) for _ in range(rounds)]
    bare = [wall([sys.executable, "-c", "pass"]) for _ in range(rounds)]
    plans = [wall([*BUILD_IMAGE, *TARGET, "--dry-run"]) for _ in range(rounds)]
    return [
        figure("build-image --help", helps, "s", "0.15", f"of which Python itself {statistics.median(bare):.3f} s"),
        figure("build-image --dry-run", plans, "s"),
    ]


def measure_overhead(bench: Bench) -> list[Figure]:
    """Our node stage against the same folder built by Packer alone, lane tree, base cached."""
    ours, bare, whole, peaks = [], [], [], []
    build(bench, "qemu.lane=tree")  # makes the base, if it is not there
    for _ in range(bench.rounds):
        built = build(bench, "qemu.lane=tree")
        ours.append(built.stages["node"])
        whole.append(built.seconds)
        peaks.append(built.peak_mb)
        bare.append(wall(["sh", built.folder / "node/rebuild.sh"]))
    return [
        ratio("node stage over bare packer build", ours, bare, "1.05"),
        ratio("whole run (disk, checks, qcow2) over bare packer build", whole, bare),
        figure("peak memory of the orchestrator", peaks, "MB", "100"),
    ]


def measure_stages(bench: Bench) -> list[Figure]:
    """What a cached base saves, lane tree."""
    two, single = [], []
    build(bench, "qemu.lane=tree")
    for _ in range(bench.rounds):
        two.append(build(bench, "qemu.lane=tree").stages["node"])
        single.append(build(bench, "qemu.lane=tree", "build.single_stage=true").stages["node"])
    return [ratio("node on a cached base over single stage (tree)", two, single, "0.5")]


def measure_lanes(bench: Bench) -> list[Figure]:
    """What a machine costs: lane vm against lane tree, bases cached."""
    vm, tree = [], []
    for lane in ("vm", "tree"):
        build(bench, f"qemu.lane={lane}")
    for _ in range(bench.rounds):
        vm.append(build(bench, "qemu.lane=vm").stages["node"])
        tree.append(build(bench, "qemu.lane=tree").stages["node"])
    return [ratio("node stage, lane tree over lane vm", tree, vm)]


def measure_boot(bench: Bench) -> list[Figure]:
    """Power-on until the seed's user can log in, by firmware."""
    disks = sorted(bench.image.rglob("*.qcow2"))
    if len(disks) != 1:
        raise SystemExit(f"{bench.image} holds no image: 'make image' leaves one in out/")
    accelerator = choose("auto").name
    seconds: dict[str, list[float]] = {}
    computed: dict[str, list[float]] = {}
    direct = boot_files(disks[0], bench.work / "boot")
    ways: dict[str, tuple[Firmware, DirectBoot | None]] = {
        "BIOS": ("bios", None),
        "UEFI": ("uefi", None),
        "direct": ("bios", direct),
    }
    for _ in range(bench.rounds):
        for way, (firmware, kernel) in ways.items():
            spec = GuestSpec(disks[0], firmware=firmware, direct=kernel, restricted=True, accelerator=accelerator)
            with started(spec, bench.work / way) as guest:
                marks = guest.wait()
            seconds.setdefault(way, []).append(marks.ssh)
            computed.setdefault(way, []).append(marks.cpu_s)
    return [
        figure(
            f"power-on to ssh, {way}", seconds[way], "s", "", f"{accelerator}, CPU {statistics.median(computed[way])} s"
        )
        for way in ways
    ]


def boot_files(disk: Path, folder: Path) -> DirectBoot:
    """Return kernel and initramfs of an image."""
    folder.mkdir(exist_ok=True)
    raw = folder / "disk.raw"
    to_raw(disk, raw)
    try:
        kernel, initrd = extract_boot_files(raw, folder)
    finally:
        raw.unlink()
    return DirectBoot(kernel, initrd)


MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "cli": measure_cli,
    "overhead": measure_overhead,
    "stages": measure_stages,
    "lanes": measure_lanes,
    "boot": measure_boot,
}


def table(figures: Sequence[Figure]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| figure | median | aim | rounds | |", "| --- | --- | --- | --- | --- |"]
    for row in figures:
        rounds = " ".join(f"{value:g}" for value in row.rounds)
        lines.append(f"| {row.name} | {row.value:g} {row.unit} | {row.aim} | {rounds} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for; print the table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", metavar="|".join(MEASURES), help="which ones (default: all)")
    parser.add_argument("-n", "--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--image", type=Path, default=ROOT / "out", help="folder of a finished image, for boot")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    unknown = set(asked.measures) - set(MEASURES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MEASURES)}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in asked.measures or MEASURES:
            print(f"measuring {name} …", file=sys.stderr)
            figures += MEASURES[name](Bench(asked.rounds, asked.image.absolute(), Path(folder)))
    print(table(figures))
    load = os.getloadavg()[0]
    print(f"\n{os.cpu_count()} CPUs, load {load:.1f} at the end")
    if asked.json:
        asked.json.write_text(json.dumps({"load": load, "figures": [asdict(row) for row in figures]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
