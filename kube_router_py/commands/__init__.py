"""The subcommands: each module reads its arguments and calls what does the work."""
