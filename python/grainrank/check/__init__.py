"""The self-test: does a loss, on this machine and over these ranks, have the right gradients?"""
