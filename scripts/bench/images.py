"""Compare imagegen with skopeo copy, umoci unpack and find | cpio | zstd on one OCI layout.

Usage: python -m scripts.bench.images LAYOUT [--language rust] [--rounds N]

Run it as root: umoci and cpio need it for owners; imagegen does not. LAYOUT is what
scripts.debian.reference_image made. Both sides pack with zstd at level 9 on all processors and
take turns. skopeo first writes the layout with gzip layers, the only ones that Debian's umoci
reads; that is not timed. Prints the medians of wall-clock and processor seconds, and their ratios,
as JSON. On a busy machine only the ratios hold.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "cd '{0}/bundle/rootfs' && find . -print0 | LC_ALL=C sort -z | cpio -0 -o -H newc --quiet | zstd -q -9 -T0 -o '{0}/initramfs'"


def ours(layout: Path, language: str, work: Path) -> None:
    image = ["--image", f"oci:{layout}:latest", "--output", str(work / "image")]
    command = [sys.executable, "-m", "mayfly.cli.main", "image", "build", language, *image]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def theirs(layout: Path, _: str, work: Path) -> None:
    subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"oci:{work}/copy:latest"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{work}/copy:latest", work / "bundle"], check=True, capture_output=True)
    subprocess.run(["sh", "-c", PACK.format(work)], check=True)


def processor_s() -> float:
    """Seconds of processors that the commands have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("layout", type=Path)
    parser.add_argument("--language", default="rust")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    wall: dict[str, list[float]] = {"imagegen": [], "skopeo, umoci, cpio, zstd": []}
    processor: dict[str, list[float]] = {name: [] for name in wall}
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(folder) / "layout"
        gzipped = ["--dest-compress-format", "gzip", "--override-arch", "amd64"]
        subprocess.run(["skopeo", "copy", "--quiet", *gzipped, f"oci:{options.layout}:latest", f"oci:{layout}:latest"], check=True)
        for _ in range(options.rounds):
            for name, build in zip(wall, (ours, theirs), strict=True):
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    began, used = time.monotonic(), processor_s()
                    build(layout, options.language, Path(work))
                    wall[name].append(time.monotonic() - began)
                    processor[name].append(processor_s() - used)
    print(json.dumps({"wall_s": medians(wall), "processor_s": medians(processor), "rounds": options.rounds}, indent=2))


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each side, and the ratio of ours to theirs."""
    found = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    mine, other = found.values()
    return {**found, "ratio": round(mine / other, 2)}


if __name__ == "__main__":
    main()
