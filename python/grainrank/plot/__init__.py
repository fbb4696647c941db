"""The `plot` subcommand: the picture of a JSON file that another subcommand wrote."""
