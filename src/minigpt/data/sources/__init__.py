"""Files, folders, hubs and standard input -> documents."""
