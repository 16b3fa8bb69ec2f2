"""A chain of snapshots as one: each page as the last of them has it."""

import os
from pathlib import Path

import pytest

from mayfly.errors import SnapshotError
from mayfly.protocol.pages import WorkingSet, pack_runs, unpack_runs, unpack_working_set
from mayfly.schema import replace
from mayfly.snapshots.flat import flatten
from mayfly.snapshots.store import MANIFEST, Snapshot, SnapshotManifest, digests
from mayfly.units import PAGE
from mayfly.vmm.config import Channel
from mayfly.vmm.snapshot import MEMORY, PAGES, STATE, WORKING_SET
from mayfly.vmm.snapshot.files import Shape

COUNT = 2000
NOTED = WorkingSet([(3, 2)], [(5, 1)])
MANIFEST_OF = SnapshotManifest(
    name="ours",
    language="toy",
    version="1",
    arch="x86_64",
    parent="",
    parent_digest="",
    kernel_digest="",
    initramfs_digest="",
    end_marker="",
    machine=Shape(memory=COUNT * PAGE, cpus=1, channel=Channel.VIRTIO, devices=(), network=None),
    files={},
    memory_bytes=0,
    created="",
)


def layer(folder: Path, runs: list[tuple[int, int]], memory: bytearray, parent: Snapshot | None) -> Snapshot:
    """A layer with such pages, which are laid over `memory`."""
    folder.mkdir()
    with (folder / MEMORY).open("wb") as file:
        file.truncate(len(memory))
        for first, count in runs:
            data = os.urandom(count * PAGE)
            file.seek(first * PAGE)
            file.write(data)
            memory[first * PAGE : (first + count) * PAGE] = data
    (folder / PAGES).write_bytes(pack_runs(runs))
    (folder / STATE).write_text(folder.name)
    (folder / WORKING_SET).write_bytes(NOTED.pack())
    return Snapshot(folder, replace(MANIFEST_OF, parent=parent.manifest.name if parent else ""), parent)


def test_each_page_is_as_the_last_layer_has_it(tmp_path: Path) -> None:
    memory = bytearray(COUNT * PAGE)
    base = layer(tmp_path / "base", [(0, 700), (1500, 3)], memory, None)
    diff = layer(tmp_path / "diff", [(10, 1), (650, 100), (1502, 2)], memory, base)
    last = layer(tmp_path / "last", [(11, 1), (COUNT - 1, 1)], memory, diff)
    flat = tmp_path / "flat"
    flat.mkdir()
    made = flatten(last, flat)
    assert (flat / MEMORY).read_bytes() == memory
    runs = unpack_runs((flat / PAGES).read_bytes(), len(memory))
    assert runs == [(0, 750), (1500, 4), (COUNT - 1, 1)]
    assert (flat / MEMORY).stat().st_blocks * 512 <= sum(count for _, count in runs) * PAGE + 64 * PAGE
    assert (flat / STATE).read_text() == "last"
    assert (made.parent, made.parent_digest, made.memory_bytes) == ("", "", 755 * PAGE)
    assert made.files == digests(flat)
    assert SnapshotManifest.from_json((flat / MANIFEST).read_bytes(), "flat") == made


def test_what_a_diffs_preparation_wrote_is_not_what_its_machines_write(tmp_path: Path) -> None:
    memory = bytearray(COUNT * PAGE)
    base = layer(tmp_path / "base", [(0, 700)], memory, None)
    diff = layer(tmp_path / "diff", [(5, 1)], memory, base)
    function = diff._replace(manifest=replace(diff.manifest, function="f"))
    for number, (snapshot, noted) in enumerate([(base, NOTED), (diff, WorkingSet(NOTED.read, [])), (function, NOTED)]):
        flat = tmp_path / str(number)
        flat.mkdir()
        flatten(snapshot, flat)
        assert unpack_working_set((flat / WORKING_SET).read_bytes(), len(memory)) == noted


def test_a_damaged_layer_is_told_of(tmp_path: Path) -> None:
    base = layer(tmp_path / "base", [(0, 1)], bytearray(COUNT * PAGE), None)
    (base.folder / PAGES).write_bytes(pack_runs([(COUNT, 1)]))
    (tmp_path / "flat").mkdir()
    with pytest.raises(SnapshotError):
        flatten(base, tmp_path / "flat")
