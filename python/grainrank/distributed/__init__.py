"""Losses over the batches of all ranks of a process group.

Every rank has its own rows and columns; its rows meet the columns of all ranks. A rank computes the
loss of its rows, and the gradient of the sum of what all ranks do with it, in its own embeddings.
With the mean over the ranks that DDP and FSDP take, the gradient of a parameter is then that of one
process on the whole batch (docs/distributed.md).
"""
