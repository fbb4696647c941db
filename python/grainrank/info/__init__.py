"""The `info` subcommand: what is installed here, and what runs."""
