// Every access is checked: bounds, alignment, initialisation, copies in flight, races.
#include "state.h"

namespace ptxsim {

namespace {

const char* verb(Access access) {
    return access == Access::kRead ? "read" : access == Access::kAtomic ? "atomic" : "write";
}
bool writes(Access access) { return access != Access::kRead; }

LaunchBuffer* find_buffer(uint64_t address, unsigned bytes) {
    Machine& m = *machine;
    auto holds = [&](const BufferSpec& buffer) {
        return address >= buffer.address && address + bytes <= buffer.address + buffer.bytes;
    };
    if (m.last_buffer < m.buffers.size() && holds(m.buffers[m.last_buffer])) {
        return &m.buffers[m.last_buffer];
    }
    for (size_t i = 0; i < m.buffers.size(); i++) {
        if (holds(m.buffers[i])) {
            m.last_buffer = i;
            return &m.buffers[i];
        }
    }
    return nullptr;
}

[[noreturn]] void out_of_bounds(uint64_t address, unsigned bytes, Access access, const Site* site) {
    const BufferSpec* nearest = nullptr;
    uint64_t least = ~0ull;
    for (const BufferSpec& buffer : machine->buffers) {
        const uint64_t end = buffer.address + buffer.bytes;
        const uint64_t distance = address < buffer.address ? buffer.address - address
                                  : address < end          ? 0
                                                           : address - end;
        if (distance < least) least = distance, nearest = &buffer;
    }
    if (nearest == nullptr) {
        fail(site, "out-of-bounds global %s of %u bytes at address 0x%llx; there are no buffers",
             verb(access), bytes, static_cast<unsigned long long>(address));
    }
    fail(site, "out-of-bounds global %s of %u bytes at byte %lld of buffer '%s' of %llu bytes",
         verb(access), bytes, static_cast<long long>(address - nearest->address), nearest->name,
         static_cast<unsigned long long>(nearest->bytes));
}

[[noreturn]] void race(const char* kind, const char* space, uint64_t offset, unsigned other,
                       const Site* there, bool same_block, const Site* here) {
    fail(here, "%s race on byte %llu of %s with thread %u of %s block at %s (PTX line %d)", kind,
         static_cast<unsigned long long>(offset), space, other, same_block ? "the same" : "another",
         there->location, there->ptx_line);
}

GlobalByte* global_bytes(uint64_t page) {
    Machine& m = *machine;
    if (m.last_page == nullptr || m.last_page_number != page) {
        auto& slot = m.pages[page];
        if (slot == nullptr) slot = std::make_unique<GlobalPage>();
        m.last_page_number = page, m.last_page = slot.get();
    }
    return m.last_page->bytes;
}

void check_global_race(GlobalByte& byte, Access access, const BufferSpec& buffer, uint64_t address,
                       const Site* site) {
    const uint32_t block = machine->block, epoch = machine->epoch;
    const unsigned me = current->index;
    const uint64_t offset = address - buffer.address;
    if (byte.written_at != nullptr) {
        const bool same_block = byte.write_block == block;
        const bool both_atomic = access == Access::kAtomic && byte.write == Access::kAtomic;
        if (!both_atomic && (!same_block || (byte.write_epoch == epoch && byte.writer != me))) {
            race(writes(access) ? "write-write" : "read-after-write", buffer.name, offset,
                 byte.writer, byte.written_at, same_block, site);
        }
    }
    if (!writes(access)) {
        const bool fresh = byte.read_at == nullptr || byte.read_block != block;
        byte.several_blocks |= byte.read_at != nullptr && byte.read_block != block;
        byte.several_readers =
            !fresh && byte.read_epoch == epoch && (byte.several_readers || byte.reader != me);
        byte.read_block = block, byte.read_epoch = epoch, byte.reader = uint16_t(me);
        byte.read_at = site;
        return;
    }
    if (byte.read_at != nullptr) {
        const bool same_block = byte.read_block == block && !byte.several_blocks;
        if (!same_block ||
            (byte.read_epoch == epoch && (byte.several_readers || byte.reader != me))) {
            race("write-after-read", buffer.name, offset, byte.reader, byte.read_at, same_block,
                 site);
        }
    }
    byte.write_block = block, byte.write_epoch = epoch, byte.writer = uint16_t(me);
    byte.write = access, byte.written_at = site;
}

void check_shared_race(SharedByte& byte, Access access, uint32_t offset, const Site* site) {
    const uint32_t epoch = machine->epoch, warp_epoch = machine->warp().epoch;
    const unsigned me = current->index, my_warp = me / kWarpSize;
    if (byte.write != Access::kNone && byte.write_epoch == epoch && byte.writer != me) {
        const bool ordered =
            byte.writer / kWarpSize == my_warp && byte.write_warp_epoch != warp_epoch;
        const bool harmless = access == Access::kSameValueWrite ||
                              (access == Access::kAtomic && byte.write == Access::kAtomic);
        if (!ordered && !harmless) {
            race(writes(access) ? "write-write" : "read-after-write", "shared memory", offset,
                 byte.writer, byte.written_at, true, site);
        }
    }
    const bool read_now = byte.readers != Readers::kNone && byte.read_epoch == epoch;
    const bool my_warp_read = byte.reader / kWarpSize == my_warp;
    if (writes(access)) {
        const bool others_of_warp = byte.readers == Readers::kOneWarp || byte.reader != me;
        if (read_now && (byte.readers == Readers::kSeveralWarps || !my_warp_read ||
                         (byte.read_warp_epoch == warp_epoch && others_of_warp))) {
            race("write-after-read", "shared memory", offset, byte.reader, byte.read_at, true,
                 site);
        }
        byte.write = access, byte.written_at = site, byte.writer = uint16_t(me);
        byte.write_epoch = epoch, byte.write_warp_epoch = warp_epoch;
        byte.write_fences = machine->thread().fences;
        byte.initialised = true;
        return;
    }
    if (!read_now) {
        byte.readers = Readers::kOneThread;
    } else if (!my_warp_read || byte.readers == Readers::kSeveralWarps) {
        byte.readers = Readers::kSeveralWarps;
    } else if (byte.read_warp_epoch != warp_epoch) {
        byte.readers = Readers::kOneThread;
    } else if (byte.reader != me) {
        byte.readers = Readers::kOneWarp;
    }
    byte.read_at = site, byte.reader = uint16_t(me);
    byte.read_epoch = epoch, byte.read_warp_epoch = warp_epoch;
}

void check_aligned(uint64_t address, unsigned bytes, const char* space, Access access,
                   const Site* site) {
    if (address % bytes == 0) return;
    fail(site, "misaligned %s %s of %u bytes at address 0x%llx", space, verb(access), bytes,
         static_cast<unsigned long long>(address));
}

void land(Copy& copy) {
    if (copy.landed) return;
    copy.landed = true;
    memcpy(shared_memory + copy.target, reinterpret_cast<const void*>(copy.source), copy.valid);
    memset(shared_memory + copy.target + copy.valid, 0, copy.bytes - copy.valid);
}

void finish_copies(size_t count) {
    ThreadState& me = machine->thread();
    for (size_t i = 0; i < count; i++) {
        Copy& copy = me.copies[i];
        land(copy);
        for (uint32_t k = 0; k < copy.bytes; k++) {
            machine->shared[copy.target + k].copy_in_flight = false;
        }
        check_shared(copy.target, copy.bytes, Access::kWrite, copy.site);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + std::ptrdiff_t(count));
}

void count_access(const Site* site) {
    if (++machine->accesses > kMaxAccesses) {
        fail(site, "the thread runs for ever: it may wait for another thread or block to write");
    }
}

}  // namespace

void check_global(uint64_t address, unsigned bytes, Access access, const Site* site) {
    count_access(site);
    LaunchBuffer* buffer = find_buffer(address, bytes);
    if (buffer == nullptr) out_of_bounds(address, bytes, access, site);
    check_aligned(address, bytes, "global", access, site);
    if (writes(access) && !buffer->writable) {
        fail(site, "write of %u bytes to byte %llu of the read-only buffer '%s'", bytes,
             static_cast<unsigned long long>(address - buffer->address), buffer->name);
    }
    if (access == Access::kRead || access == Access::kAtomic) buffer->traffic.read += bytes;
    if (writes(access)) buffer->traffic.written += bytes;
    if (!machine->spec->races || !buffer->writable) return;
    GlobalByte* page = global_bytes(address / kPageBytes);
    for (unsigned i = 0; i < bytes; i++) {
        check_global_race(page[address % kPageBytes + i], access, *buffer, address + i, site);
    }
}

void check_shared_bounds(uint32_t address, unsigned bytes, Access access, const Site* site) {
    if (uint64_t(address) + bytes > shared_bytes) {
        fail(site, "out-of-bounds shared %s of %u bytes at byte %u of %u", verb(access), bytes,
             address, shared_bytes);
    }
    check_aligned(address, bytes, "shared", access, site);
}

void check_shared(uint32_t address, unsigned bytes, Access access, const Site* site) {
    count_access(site);
    check_shared_bounds(address, bytes, access, site);
    const bool reads = access == Access::kRead || access == Access::kAtomic;
    for (unsigned i = 0; i < bytes; i++) {
        SharedByte& byte = machine->shared[address + i];
        if (byte.copy_in_flight) {
            fail(site, "%s of byte %u of shared memory while a cp.async still fills it: no wait",
                 verb(access), address + i);
        }
        if (machine->spec->initialised && reads && !byte.initialised) {
            fail(site, "read of uninitialised shared memory at byte %u", address + i);
        }
        if (writes(access) && byte.wgmma_reads > 0) {
            fail(site, "write to byte %u of shared memory while a wgmma still reads it: no wait",
                 address + i);
        }
        if (machine->spec->races) check_shared_race(byte, access, address + i, site);
        if (writes(access)) byte.initialised = true;
    }
}

void check_local(uint64_t address, unsigned bytes, const Site* site) {
    if (!is_local(address) || !is_local(address + bytes - 1)) {
        fail(site, "access to local memory outside the stack of the thread");
    }
    check_aligned(address, bytes, "local", Access::kRead, site);
}

void cp_async(uint64_t target, uint64_t source, unsigned bytes, unsigned valid, const Site* site) {
    if (valid > bytes) fail(site, "cp.async of %u bytes with a source of %u", bytes, valid);
    if (valid > 0) {
        check_aligned(source, bytes, "global", Access::kRead, site);
        // The bytes past a short source are not read; whole words of it are.
        for (unsigned k = 0; k < valid; k++) check_global(source + k, 1, Access::kRead, site);
    }
    const auto offset = uint32_t(target);
    check_shared(offset, bytes, Access::kWrite, site);
    Copy copy{offset, source, bytes, valid, false, site};
    if (machine->randomised() && machine->random() % 2 == 0) land(copy);
    for (unsigned k = 0; k < bytes; k++) machine->shared[offset + k].copy_in_flight = true;
    machine->thread().copies.push_back(copy);
}

void cp_async_commit() {
    ThreadState& me = machine->thread();
    me.groups.push_back(me.copies.size());
}

void cp_async_wait(unsigned pending, const Site*) {
    ThreadState& me = machine->thread();
    if (me.groups.size() <= pending) return;
    const size_t finished = me.groups.size() - pending;
    const size_t copies = me.groups[finished - 1];
    finish_copies(copies);
    me.groups.erase(me.groups.begin(), me.groups.begin() + std::ptrdiff_t(finished));
    for (size_t& end : me.groups) end -= copies;
}

void cp_async_wait_all(const Site*) {
    ThreadState& me = machine->thread();
    finish_copies(me.copies.size());
    me.groups.clear();
}

void fence_proxy_async() {
    ThreadState& me = machine->thread();
    me.fences++;
    me.fence_epoch = machine->epoch;
}

}  // namespace ptxsim
