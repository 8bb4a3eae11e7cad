"""The command line: click commands, a file for each subject, imported only when it is called."""
