// Shadow of a memory region: for every two bytes, who last wrote and who last read them, and when.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace fastdiff::emulator {

// Times are those of race_detector.h. Two bytes share a cell (the smallest element of any kernel is a half), so that
// neighbours written by two threads are told apart. All zero: never accessed.
struct ShadowCell {
  uint32_t write_epoch;
  uint32_t write_place;  // offset of the instruction in the library
  uint16_t writer;       // thread in its block
  uint16_t write_clock;
  uint16_t reader;  // thread in its block, and kMany... flags
  uint16_t read_clock;
  uint32_t read_epoch;
  uint32_t read_place;
};

constexpr size_t kBytesPerCell = 2;

// The cells of a region. The pages come zeroed and only those touched cost memory.
class ShadowCells {
 public:
  explicit ShadowCells(size_t region_bytes)
      : bytes_((region_bytes + kBytesPerCell - 1) / kBytesPerCell * sizeof(ShadowCell)) {
    void* pages = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    cells_ = static_cast<ShadowCell*>(pages);
  }
  ~ShadowCells() { munmap(cells_, bytes_); }
  ShadowCells(const ShadowCells&) = delete;
  ShadowCells& operator=(const ShadowCells&) = delete;

  ShadowCell& at_byte(size_t offset) { return cells_[offset / kBytesPerCell]; }

 private:
  size_t bytes_;
  ShadowCell* cells_;
};

}  // namespace fastdiff::emulator
