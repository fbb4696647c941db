"""Every configuration of the Triton kernels, compiled for every target without a GPU, and judged."""
