"""The command line: the commands, argument parsing, one-line error messages."""
