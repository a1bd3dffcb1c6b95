"""The command line: parse, configure, one library call. No mathematics; torch is imported only when a command runs."""
