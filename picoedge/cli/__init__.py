"""The command line: one click command a file, each imported only when it is called."""
