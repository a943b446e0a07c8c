"""Files, folders, hub datasets and standard input -> documents."""
