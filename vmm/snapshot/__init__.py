"""Snapshots of machines: what is in a snapshot's folder, and how a machine gets there and back.

    state.json   what KVM and the devices keep, and the configuration that they belong to
    memory       guest RAM, sparse: each page of this snapshot at its own offset
    pages        which pages those are: ascending runs of (first page u64, pages u64)
    working-set  which pages a machine that goes on from it will soon read, and which it will write:
                 ascending runs of (first page u64, pages u32, 1 if written u32)

A snapshot holds only what differs from its parent. A **base** has none: it is compared with a
machine that has not run, whose memory is zeros and the initramfs. The base and then each **diff**
are laid over guest RAM as private mappings, so all machines share one copy in the page cache.
"""

STATE, MEMORY, PAGES, WORKING_SET = "state.json", "memory", "pages", "working-set"
FILES = (STATE, MEMORY, PAGES, WORKING_SET)
