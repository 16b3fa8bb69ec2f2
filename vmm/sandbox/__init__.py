"""What a vmm process gives up before its guest runs."""
