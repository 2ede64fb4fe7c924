"""The commands, one file each: `add_arguments(parser)` and `main(args)`, whose result is the exit status (None: 0)."""
