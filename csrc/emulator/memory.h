// Which memory a kernel may touch. A GPU has only device memory; here every pointer is readable, so the binding names
// the buffers of a call and the emulator reports any access outside them.
#pragma once

#include <cstddef>
#include <mutex>

namespace fastdiff::emulator {

enum class Contents {
  Initialised,
  // Reading a byte that no kernel has written since is reported. All bits are set (NaN), unless the memory overlaps
  // with what is declared already: what an earlier call left there must not pass for a result.
  Uninitialised,
};

// Declares [address, address + bytes) global memory. A null address or zero bytes declares nothing; declaring the same
// range again keeps what is known about it.
void register_buffer(const void* address, size_t bytes, Contents contents = Contents::Initialised);

// Forgets every declared buffer.
void clear_buffers();

// The buffers declared during its life are forgotten at its end. Only one lives at a time, so that calls from several
// threads run one after another; the next one waits.
class BufferScope {
 public:
  BufferScope();
  ~BufferScope() { clear_buffers(); }
  BufferScope(const BufferScope&) = delete;
  BufferScope& operator=(const BufferScope&) = delete;

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace fastdiff::emulator
