"""Snapshots of machines: what lies in a snapshot's folder, and how a machine gets there and back.

    state.json   what KVM and the devices keep, and the configuration that they belong to
    memory       guest RAM, sparse: each page that belongs to this snapshot at its own offset
    pages        which pages those are: runs of (first page u64, pages u64), little endian,
    ascending

A snapshot holds only what differs from its parent. A **base** has none and is compared with a
machine that has not run, whose memory is zeros and the initramfs. A chain of folders from the base
on gives the whole machine: the base and then each **diff** are laid over guest RAM as private
mappings of their files, so all machines share one copy in the page cache.
"""

STATE, MEMORY, PAGES, WORKING_SET = "state.json", "memory", "pages", "working-set"
FILES = (STATE, MEMORY, PAGES, WORKING_SET)
