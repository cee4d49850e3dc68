#include "emulator/tensor_cores.h"

#include <array>

#include "common/half_bits.h"
#include "emulator/collectives.h"
#include "emulator/memory_access.h"
#include "emulator/scheduler.h"

namespace fastdiff::emulator {

namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;
constexpr size_t kMatrixRowBytes = 16;

// A lane's part in a collective of the whole warp.
struct MatrixRows {
  const void* own;
  std::array<const void*, kLanes> all;
};

struct MatrixOperands {
  bool halves;
  const uint32_t* a;
  const uint32_t* b;
  float* d;
};

void share_rows(void* const* lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& rows = *static_cast<MatrixRows*>(lanes[lane]);
    for (int other = 0; other < kLanes; ++other) rows.all[other] = static_cast<MatrixRows*>(lanes[other])->own;
  }
}

double element(uint32_t word, int half, bool halves) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  return halves ? to_float(Float16{bits}) : to_float(BFloat16{bits});
}

// Which lane holds what: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void multiply(void* const* lanes) {
  double a[kRows][kDepth], b[kDepth][kColumns];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& operands = *static_cast<MatrixOperands*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      const int row = group + (i / 2 % 2 ? 8 : 0), column = pair + i % 2 + (i >= 4 ? 8 : 0);
      a[row][column] = element(operands.a[i / 2], i % 2, operands.halves);
    }
    for (int i = 0; i < 4; ++i) {
      b[pair + i % 2 + (i >= 2 ? 8 : 0)][group] = element(operands.b[i / 2], i % 2, operands.halves);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<MatrixOperands*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      double sum = d[i];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      d[i] = static_cast<float>(sum);
    }
  }
}

std::array<const void*, kLanes> rows_of_warp(const void* row, SourceLine site) {
  MatrixRows rows{row, {}};
  run_whole_warp(share_rows, &rows, site);
  return rows.all;
}

uint16_t load_element(const void* row, int index, const void* instruction) {
  const auto* address = static_cast<const uint16_t*>(row) + index;
  check_access(address, sizeof *address, Access::Read, sizeof *address, instruction);
  return *address;
}

void check_row(const void* row, const void* instruction) {
  check_access(row, kMatrixRowBytes, Access::Read, kMatrixRowBytes, instruction);
}

}  // namespace

void load_matrices(uint32_t (&r)[4], const void* row, const char* file, int line) {
  const void* instruction = __builtin_return_address(0);
  check_row(row, instruction);
  const auto rows = rows_of_warp(row, {file, line});
  const int lane = current_lane();
  for (int m = 0; m < 4; ++m) {
    const void* source = rows[8 * m + lane / 4];
    const uint32_t low = load_element(source, lane % 4 * 2, instruction);
    r[m] = low | uint32_t{load_element(source, lane % 4 * 2 + 1, instruction)} << 16;
  }
}

void load_matrices_transposed(uint32_t (&r)[4], const void* row, const char* file, int line) {
  const void* instruction = __builtin_return_address(0);
  check_row(row, instruction);
  const auto rows = rows_of_warp(row, {file, line});
  const int lane = current_lane();
  for (int m = 0; m < 4; ++m) {
    const void* const* sources = &rows[8 * m + lane % 4 * 2];
    const uint32_t low = load_element(sources[0], lane / 4, instruction);
    r[m] = low | uint32_t{load_element(sources[1], lane / 4, instruction)} << 16;
  }
}

void multiply_matrices(bool halves, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
                       int line) {
  MatrixOperands operands{halves, a, b, d};
  run_whole_warp(multiply, &operands, {file, line});
}

}  // namespace fastdiff::emulator
