// ldmatrix, stmatrix, mma.sync and wgmma. Sums are taken in float, in the order of k.
#include "state.h"

namespace ptxsim {

namespace {

constexpr uint32_t kAllLanes = ~0u;

float half_operand(Element element, uint32_t x) {
    return element == Element::kBf16 ? bf16_to_float(uint16_t(x)) : f16_to_float(uint16_t(x));
}

// Calls `move(lane, matrix, half, address)` for the 16-bit elements of 8x8 matrices.
template <class Move>
void for_matrix_elements(const Warp& warp, unsigned count, bool transpose, Move move) {
    for (unsigned matrix = 0; matrix < count; matrix++) {
        for (unsigned lane = 0; lane < kWarpSize; lane++) {
            for (unsigned half = 0; half < 2; half++) {
                const unsigned along = lane % 4 * 2 + half, across = lane / 4;
                const unsigned row = transpose ? along : across;
                const unsigned column = transpose ? across : along;
                move(lane, matrix, half, warp.lanes[matrix * 8 + row].row + 2 * column);
            }
        }
    }
}

struct Tile {
    float a[16][32], b[32][8], c[16][8];
};

void gather(const Warp& warp, unsigned k, Element element, Tile& tile) {
    const unsigned per_register = element == Element::kTf32 ? 1 : 2;
    const unsigned k_step = 4 * per_register;  // columns of A that four lanes hold
    const unsigned n_a = 2 * k / k_step, n_b = k / k_step;
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        const unsigned group = lane / 4, member = lane % 4;
        const uint32_t* in = warp.lanes[lane].in;
        auto decode = [&](uint32_t word, unsigned part) {
            return element == Element::kTf32 ? tf32_operand(word)
                                             : half_operand(element, word >> 16 * part);
        };
        for (unsigned part = 0; part < per_register; part++) {
            for (unsigned i = 0; i < n_a; i++) {
                const unsigned column = member * per_register + part + k_step * (i / 2);
                tile.a[group + 8 * (i % 2)][column] = decode(in[i], part);
            }
            for (unsigned i = 0; i < n_b; i++) {
                const unsigned row = member * per_register + part + k_step * i;
                tile.b[row][group] = decode(in[n_a + i], part);
            }
        }
        for (unsigned i = 0; i < 4; i++) {
            tile.c[group + 8 * (i / 2)][2 * member + i % 2] = bits<float>(in[n_a + n_b + i]);
        }
    }
}

// The integer product: four bytes to a register, sums modulo 2^32 unless they saturate.
void multiply_bytes(Warp& warp, unsigned k, Element element, bool saturate) {
    int32_t a[16][32], b[32][8], c[16][8];
    auto decode = [&](uint32_t word, unsigned part) {
        const auto byte = uint8_t(word >> 8 * part);
        return element == Element::kS8 ? int32_t(int8_t(byte)) : int32_t(byte);
    };
    const unsigned n_a = k / 8, n_b = k / 16;
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        const unsigned group = lane / 4, member = lane % 4;
        const uint32_t* in = warp.lanes[lane].in;
        for (unsigned part = 0; part < 4; part++) {
            for (unsigned i = 0; i < n_a; i++) {
                a[group + 8 * (i % 2)][4 * member + part + 16 * (i / 2)] = decode(in[i], part);
            }
            for (unsigned i = 0; i < n_b; i++) {
                b[4 * member + part + 16 * i][group] = decode(in[n_a + i], part);
            }
        }
        for (unsigned i = 0; i < 4; i++) {
            c[group + 8 * (i / 2)][2 * member + i % 2] = int32_t(in[n_a + n_b + i]);
        }
    }
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            int64_t sum = c[row][column];
            for (unsigned j = 0; j < k; j++) sum += a[row][j] * b[j][column];
            warp.lanes[lane].out[i] = uint32_t(saturate ? saturate_integer<int32_t>(sum) : sum);
        }
    }
}

void multiply(Warp& warp, unsigned k, Element element) {
    Tile tile;
    gather(warp, k, element, tile);
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned j = 0; j < k; j++) {
            for (unsigned n = 0; n < 8; n++) tile.c[i][n] += tile.a[i][j] * tile.b[j][n];
        }
    }
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            warp.lanes[lane].out[i] = bits<uint32_t>(tile.c[row][column]);
        }
    }
}

// Lane l holds A[l / 4 + 8 i, l % 4 + 4 j], B[l % 4 + 4 j, l / 4] and two neighbours of C per row.
void multiply_f64(Warp& warp, unsigned m, unsigned k) {
    double a[16][16], b[16][8], c[16][8];
    const unsigned rows = m / 8, steps = k / 4;
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        const unsigned group = lane / 4, member = lane % 4;
        const uint64_t* in = warp.lanes[lane].wide_in;
        for (unsigned j = 0; j < steps; j++) {
            for (unsigned i = 0; i < rows; i++) {
                a[group + 8 * i][member + 4 * j] = bits<double>(*in++);
            }
        }
        for (unsigned j = 0; j < steps; j++) b[member + 4 * j][group] = bits<double>(*in++);
        for (unsigned i = 0; i < 2 * rows; i++) {
            c[group + 8 * (i / 2)][2 * member + i % 2] = bits<double>(*in++);
        }
    }
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        for (unsigned i = 0; i < 2 * rows; i++) {
            const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            double sum = c[row][column];
            for (unsigned j = 0; j < k; j++) sum = std::fma(a[row][j], b[j][column], sum);
            warp.lanes[lane].wide_out[i] = bits<uint64_t>(sum);
        }
    }
}

// ---- wgmma

// A matrix in shared memory, as a wgmma descriptor gives it.
struct Descriptor {
    uint32_t start, leading, stride, row_bytes, swizzle;
    explicit Descriptor(uint64_t word)
        : start(uint32_t(word & 0x3fff) << 4),
          leading(uint32_t(word >> 16 & 0x3fff) << 4),
          stride(uint32_t(word >> 32 & 0x3fff) << 4) {
        constexpr uint32_t kRowBytes[] = {16, 128, 64, 32}, kSwizzle[] = {0, 7, 3, 1};
        row_bytes = kRowBytes[word >> 62];
        swizzle = kSwizzle[word >> 62];
    }
    // Of the 16 bytes that begin at byte `along` of line `line`. Lines run along k, or across it
    // where the matrix is transposed.
    uint32_t chunk(uint32_t line, uint32_t along, bool transpose) const {
        uint32_t address;
        if (transpose) {
            address = start + along / row_bytes * leading + line / 8 * stride +
                      line % 8 * row_bytes + along % row_bytes;
            if (swizzle == 0) {
                address = start + along / 16 * stride + line / 8 * leading + line % 8 * 16;
            }
        } else {
            address = start + line / 8 * stride + line % 8 * row_bytes;
            address += swizzle == 0 ? along / 16 * leading : along;
        }
        return address ^ (address >> 7 & swizzle) << 4;
    }
};

void read_chunk(uint32_t address, const Site* site) {
    Machine& m = *machine;
    check_shared(address, 16, Access::kRead, site);
    for (unsigned k = 0; k < 16; k++) {
        SharedByte& byte = m.shared[address + k];
        byte.wgmma_reads++;
        if (!m.spec->races || byte.write == Access::kNone) continue;
        const ThreadState& writer = m.threads[byte.writer];
        const bool fenced = writer.fences != byte.write_fences ||
                            (m.thread().fences > 0 && m.thread().fence_epoch > byte.write_epoch);
        if (!fenced) {
            fail(site,
                 "wgmma reads byte %u of shared memory, written at %s (PTX line %d) with no "
                 "fence.proxy.async since",
                 address + k, byte.written_at->location, byte.written_at->ptx_line);
        }
    }
    m.warp().wgmma_reads.push_back({address, site});
}

// Reads x[line][i]: `lines` rows or columns of a matrix, each of shape.k elements.
void read_operand(float (*to)[16], unsigned first, unsigned lines, uint64_t word, bool transpose,
                  const Wgmma& shape, const Site* site) {
    if (word >> 49 & 7) fail(site, "wgmma descriptor with a base offset, which is not simulated");
    const Descriptor descriptor(word);
    const unsigned size = shape.element == Element::kTf32 ? 4 : 2, per_chunk = 16 / size;
    const unsigned outer = transpose ? shape.k : lines, inner = transpose ? lines : shape.k;
    for (unsigned i = 0; i < outer; i++) {
        for (unsigned j = 0; j < inner; j += per_chunk) {
            const unsigned line = transpose ? i : first + i;
            const unsigned along = (transpose ? first + j : j) * size;
            const uint32_t address = descriptor.chunk(line, along, transpose);
            read_chunk(address, site);
            for (unsigned e = 0; e < per_chunk; e++) {
                const unsigned char* from = shared_memory + address + e * size;
                const float value =
                    size == 4 ? tf32_operand(load_parameter<uint32_t>(from))
                              : half_operand(shape.element, load_parameter<uint16_t>(from));
                (transpose ? to[j + e][i] : to[i][j + e]) = value;
            }
        }
    }
}

// A[r][k] of this warp's 16 rows from the registers of its lanes: the layout of mma.sync.
void gather_a(const Warp& warp, const Wgmma& shape, float (*to)[16]) {
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = lane / 4 + 8 * (i % 2);
            const uint32_t word = warp.lanes[lane].in[i];
            if (shape.element == Element::kTf32) {
                to[row][lane % 4 + 4 * (i / 2)] = tf32_operand(word);
            } else {
                to[row][lane % 4 * 2 + 8 * (i / 2)] = half_operand(shape.element, word);
                to[row][lane % 4 * 2 + 8 * (i / 2) + 1] = half_operand(shape.element, word >> 16);
            }
        }
    }
}

void multiply_group(Warp& warp, const Wgmma& shape, bool a_in_registers, uint64_t a_descriptor,
                    uint64_t b_descriptor, const Site* site) {
    static float a[16][16], b[256][16];
    const unsigned warp_of_group = current->index / kWarpSize % 4;
    if (a_in_registers) {
        gather_a(warp, shape, a);
    } else {
        read_operand(a, 16 * warp_of_group, 16, a_descriptor, shape.transpose_a, shape, site);
    }
    read_operand(b, 0, shape.n, b_descriptor, shape.transpose_b, shape, site);
    const auto sign = float(shape.scale_a * shape.scale_b);
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
        uint32_t* accumulators = warp.lanes[lane].accumulators;
        for (unsigned i = 0; i < shape.n / 2; i++) {
            const unsigned row = lane / 4 + i % 4 / 2 * 8;
            const unsigned column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = shape.accumulate ? bits<float>(accumulators[i]) : 0.0f;
            for (unsigned k = 0; k < shape.k; k++) sum += sign * a[row][k] * b[column][k];
            accumulators[i] = bits<uint32_t>(sum);
        }
    }
}

}  // namespace

void load_matrices(uint32_t* to, unsigned count, bool transpose, uint64_t row, const Site* site) {
    Lane& mine = machine->lane();
    mine.row = uint32_t(row);
    if (current->index % kWarpSize < 8 * count) {
        check_shared(mine.row, 16, Access::kRead, site);
    }
    rendezvous(kAllLanes, "ldmatrix", site, [&](Warp& warp) {
        auto move = [&](unsigned lane, unsigned matrix, unsigned half, uint32_t address) {
            uint32_t& word = warp.lanes[lane].out[matrix];
            if (half == 0) word = 0;
            word |= uint32_t(load_parameter<uint16_t>(shared_memory + address)) << 16 * half;
        };
        for_matrix_elements(warp, count, transpose, move);
    });
    std::copy_n(mine.out, count, to);
}

void store_matrices(const uint32_t* from, unsigned count, bool transpose, uint64_t row,
                    const Site* site) {
    constexpr unsigned kRowBytes = 16;
    Lane& mine = machine->lane();
    mine.row = uint32_t(row);
    std::copy_n(from, count, mine.in);
    rendezvous(kAllLanes, "stmatrix", site, [&, me = current](Warp& warp) {
        // Row by row, so that rows that are stored twice are seen to hold the same.
        for (unsigned line = 0; line < 8 * count; line++) {
            const uint32_t address = warp.lanes[line].row;
            check_shared_bounds(address, kRowBytes, Access::kWrite, site);
            uint16_t values[8];
            for (unsigned column = 0; column < 8; column++) {
                const unsigned i = line % 8;
                const unsigned lane = transpose ? 4 * column + i / 2 : 4 * i + column / 2;
                const unsigned half = (transpose ? i : column) % 2;
                values[column] = uint16_t(warp.lanes[lane].in[line / 8] >> 16 * half);
            }
            unsigned char* to = shared_memory + address;
            const bool same = memcmp(to, values, kRowBytes) == 0;
            memcpy(to, values, kRowBytes);
            current = &machine->threads[me->index / kWarpSize * kWarpSize + line];
            check_shared(address, kRowBytes, same ? Access::kSameValueWrite : Access::kWrite, site);
            current = me;
        }
    });
}

void mma(uint32_t* d, const uint32_t* in, unsigned k, Element element, bool saturate,
         const Site* site) {
    const bool bytes = element == Element::kS8 || element == Element::kU8;
    const unsigned per_register = bytes ? 4 : element == Element::kTf32 ? 1 : 2;
    const unsigned count = 3 * k / (4 * per_register) + 4;
    Lane& mine = machine->lane();
    std::copy_n(in, count, mine.in);
    rendezvous(kAllLanes, "mma.sync", site, [&](Warp& warp) {
        bytes ? multiply_bytes(warp, k, element, saturate) : multiply(warp, k, element);
    });
    std::copy_n(mine.out, 4, d);
}

void mma_f64(uint64_t* d, const uint64_t* in, unsigned m, unsigned k, const Site* site) {
    Lane& mine = machine->lane();
    const unsigned rows = m / 8, steps = k / 4;
    std::copy_n(in, rows * steps + steps + 2 * rows, mine.wide_in);
    rendezvous(kAllLanes, "mma.sync", site, [&](Warp& warp) { multiply_f64(warp, m, k); });
    std::copy_n(mine.wide_out, 2 * rows, d);
}

void wgmma(uint32_t* d, const Wgmma& shape, const uint32_t* a, uint64_t a_descriptor,
           uint64_t b_descriptor, const Site* site) {
    Lane& mine = machine->lane();
    std::copy_n(d, shape.n / 2, mine.accumulators);
    if (a != nullptr) std::copy_n(a, 4, mine.in);
    rendezvous(kAllLanes, "wgmma.mma_async", site, [&](Warp& warp) {
        multiply_group(warp, shape, a != nullptr, a_descriptor, b_descriptor, site);
    });
    std::copy_n(mine.accumulators, shape.n / 2, d);
}

void wgmma_commit(const Site* site) {
    rendezvous(kAllLanes, "wgmma.commit_group", site,
               [](Warp& warp) { warp.wgmma_groups.push_back(warp.wgmma_reads.size()); });
}

void wgmma_wait(unsigned pending, const Site* site) {
    rendezvous(kAllLanes, "wgmma.wait_group", site, [&](Warp& warp) {
        if (warp.wgmma_groups.size() <= pending) return;
        const size_t finished = warp.wgmma_groups.size() - pending;
        const size_t reads = warp.wgmma_groups[finished - 1];
        for (size_t i = 0; i < reads; i++) {
            const Range& range = warp.wgmma_reads[i];
            for (unsigned k = 0; k < 16; k++) machine->shared[range.address + k].wgmma_reads--;
            check_shared(range.address, 16, Access::kRead, range.site);
        }
        auto erase_front = [](auto& from, size_t count) {
            from.erase(from.begin(), from.begin() + std::ptrdiff_t(count));
        };
        erase_front(warp.wgmma_reads, reads);
        erase_front(warp.wgmma_groups, finished);
        for (size_t& end : warp.wgmma_groups) end -= reads;
    });
}

}  // namespace ptxsim
