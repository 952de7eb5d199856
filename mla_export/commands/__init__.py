"""One file a subcommand: `run(args)` does the work, prints the result and gives the exit code."""
