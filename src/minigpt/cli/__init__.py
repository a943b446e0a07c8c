"""The command line: parsing, messages of one line, and the commands themselves."""
