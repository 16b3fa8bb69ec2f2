"""One folder per architecture, with the same file names in each."""
