"""Triton kernels that between them use what a matrix product is compiled to."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr,  # [M, K], or [K, M] where A_T
    b_ptr,  # [N, K], or [K, N] where not B_T
    out_ptr,  # [M, N] float32
    row_max_ptr,  # [M] float32
    row_sum_ptr,  # [M] float32
    M,
    N,
    K,
    scale,
    A_T: tl.constexpr,
    B_T: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The product, and the largest and the sum of the exponentials of each row."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        offs_k = k + tl.arange(0, BLOCK_K)
        a_offsets = offs_k[None, :] * M + offs_m[:, None] if A_T else offs_m[:, None] * K + offs_k
        b_offsets = offs_n[None, :] * K + offs_k[:, None] if B_T else offs_k[:, None] * N + offs_n
        a = tl.load(a_ptr + a_offsets, (offs_m < M)[:, None] & (offs_k < K), 0.0)
        b = tl.load(b_ptr + b_offsets, (offs_n < N) & (offs_k < K)[:, None], 0.0)
        if SCALED:  # the tensor cores of sm_90 then take A from registers
            a = (a * scale).to(a.dtype)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    mask = (offs_m < M)[:, None] & (offs_n < N)
    tl.store(out_ptr + offs_m[:, None] * N + offs_n, product, mask)
    product = tl.where(mask, product, float("-inf"))
    largest = tl.max(product, 1)
    total = tl.sum(tl.exp(product - largest[:, None]), 1)
    tl.store(row_max_ptr + offs_m, largest, offs_m < M)
    tl.store(row_sum_ptr + offs_m, total, offs_m < M)


@triton.jit
def row_dot(a_ptr, b_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """Products `<a, b>` of rows [R, N]; out [R]."""
    row = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    a = tl.load(a_ptr + row * N + offs, offs < N, 0.0)
    b = tl.load(b_ptr + row * N + offs, offs < N, 0.0)
    tl.store(out_ptr + row, tl.sum(a * b, 0))
