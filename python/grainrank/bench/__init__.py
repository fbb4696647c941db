"""The `bench` subcommand: one training step of a loss and of its alternatives, on this machine."""
