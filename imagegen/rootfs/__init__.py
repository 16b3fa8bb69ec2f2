"""Root file systems: layers merged into a tree, pruned, written as an initramfs."""
