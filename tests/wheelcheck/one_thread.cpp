// The parallel region of OpenMP, on the calling thread: preloaded for qemu, whose memory grows with
// every thread that a program starts.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned, unsigned) { body(data); }
