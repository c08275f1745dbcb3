#include "tensor_cores.h"

#include <cstring>

#include "cuda_types.h"

namespace fastnn::emulator {
namespace {

// --- mma ---

void mma_compute(void* const (&lanes)[32], unsigned) {
  const auto& first = *static_cast<const MmaOperands*>(lanes[0]);
  const uint32_t* a[32];
  const uint32_t* b[32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& operands = *static_cast<const MmaOperands*>(lanes[lane]);
    if (operands.type != first.type || operands.depth != first.depth ||
        operands.half_accumulators != first.half_accumulators) {
      fail(first.where, "calls mma, and lanes 0 and %u of its warp differ in shape or type", lane);
    }
    a[lane] = operands.a;
    b[lane] = operands.b;
  }
  MmaVector rows[16], columns[8];
  unpack_a(rows, first.type, first.depth, a);
  unpack_b(columns, first.type, first.depth, b);
  for (unsigned lane = 0; lane < 32; ++lane) {
    void* const d = static_cast<const MmaOperands*>(lanes[lane])->d;
    for (unsigned i = 0; i < 4; ++i) {
      const MmaVector& row = rows[lane / 4 + 8 * (i / 2)];
      const MmaVector& column = columns[2 * (lane % 4) + i % 2];
      if (first.half_accumulators) {
        uint16_t value;
        std::memcpy(&value, static_cast<char*>(d) + 2 * i, 2);
        value = dot_add_half(row, column, first.depth, value);
        std::memcpy(static_cast<char*>(d) + 2 * i, &value, 2);
      } else {
        float& value = static_cast<float*>(d)[i];
        value = dot_add(row, column, first.depth, value);
      }
    }
  }
}

// --- matrices of 8 x 8 ---

struct MatrixOperands {
  unsigned count;
  bool transposed;
  const void* row;
  uint32_t* matrices;
  Where where;
};

uint16_t element(const MatrixOperands& lane, unsigned matrix, unsigned i) {
  return static_cast<uint16_t>(lane.matrices[matrix] >> 16 * i);
}

const MatrixOperands& checked(void* const (&lanes)[32], unsigned lane, const char* name) {
  const auto& first = *static_cast<const MatrixOperands*>(lanes[0]);
  const auto& operands = *static_cast<const MatrixOperands*>(lanes[lane]);
  if (operands.count != first.count || operands.transposed != first.transposed) {
    fail(first.where, "calls %s, and lanes 0 and %u of its warp differ in its form", name, lane);
  }
  return operands;
}

void load_compute(void* const (&lanes)[32], unsigned) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MatrixOperands& operands = checked(lanes, lane, "ldmatrix");
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned m = 0; m < operands.count; ++m) {
      uint16_t values[2];
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = operands.transposed ? 2 * t + i : g, column = operands.transposed ? g : 2 * t + i;
        const void* const address = static_cast<const MatrixOperands*>(lanes[8 * m + row])->row;
        std::memcpy(&values[i], static_cast<const char*>(address) + 2 * column, 2);
      }
      operands.matrices[m] = values[0] | static_cast<uint32_t>(values[1]) << 16;
    }
  }
}

void store_compute(void* const (&lanes)[32], unsigned) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MatrixOperands& operands = checked(lanes, lane, "stmatrix");
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned m = 0; m < operands.count; ++m) {
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = operands.transposed ? 2 * t + i : g, column = operands.transposed ? g : 2 * t + i;
        const void* const address = static_cast<const MatrixOperands*>(lanes[8 * m + row])->row;
        const uint16_t value = element(operands, m, i);
        std::memcpy(static_cast<char*>(const_cast<void*>(address)) + 2 * column, &value, 2);
      }
    }
  }
}

void transpose_compute(void* const (&lanes)[32], unsigned) {
  uint32_t transposed[32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    // Row r, column c is element c % 2 of lane 4 r + c / 2.
    const auto from = [&](unsigned row) -> uint32_t {
      return element(*static_cast<const MatrixOperands*>(lanes[4 * row + g / 2]), 0, g % 2);
    };
    transposed[lane] = from(2 * t) | from(2 * t + 1) << 16;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    static_cast<const MatrixOperands*>(lanes[lane])->matrices[0] = transposed[lane];
  }
}

void check_row(const char* name, const void* row, unsigned count, Access kind, Where where) {
  const unsigned lane = current_thread().lane;
  if (lane >= 8 * count) return;
  if (!is_shared(row)) fail(where, "gives %s the address of row %u, which is not in shared memory", name, lane);
  check_access(row, 16, 16, kind, where);
}

}  // namespace

void unpack_a(MmaVector (&rows)[16], MmaType type, unsigned depth, const uint32_t* const (&a)[32]) {
  const unsigned elements = 4 / element_bytes(type), words = depth / (2 * elements);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < words; ++r) {
      unpack(rows[g + 8 * (r % 2)], type, elements * (4 * (r / 2) + t), &a[lane][r], elements);
    }
  }
}

void unpack_b(MmaVector (&columns)[8], MmaType type, unsigned depth, const uint32_t* const (&b)[32]) {
  const unsigned elements = 4 / element_bytes(type), words = depth / (4 * elements);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < words; ++r) {
      unpack(columns[g], type, elements * (4 * r + t), &b[lane][r], elements);
    }
  }
}

void meet_all(const char* name, void* operand, void (*compute)(void* const (&lanes)[32], unsigned mask),
              Where where) {
  const unsigned before = current_thread().warp * 32, threads = blockDim.x * blockDim.y * blockDim.z;
  if (threads - before < 32) {
    fail(where, "calls %s, which takes all 32 lanes, and its warp has %u", name, threads - before);
  }
  warp_meet(name, 0xffffffffu, operand, compute, where);
}

void mma_sync(MmaOperands operands) { meet_all("mma", &operands, mma_compute, operands.where); }

// The lane that gives a row's address answers for the access: it is the one a report should name, and the eight
// rows of a matrix are the eight accesses of one phase to whoever counts bank conflicts.
void load_matrices(uint32_t* matrices, unsigned count, bool transposed, const void* row, Where where) {
  check_row("ldmatrix", row, count, Access::kRead, where);
  MatrixOperands operands{
      .count = count, .transposed = transposed, .row = row, .matrices = matrices, .where = where};
  meet_all("ldmatrix", &operands, load_compute, where);
}

void store_matrices(void* row, unsigned count, bool transposed, const uint32_t* matrices, Where where) {
  check_row("stmatrix", row, count, Access::kWrite, where);
  MatrixOperands operands{.count = count,
                          .transposed = transposed,
                          .row = row,
                          .matrices = const_cast<uint32_t*>(matrices),
                          .where = where};
  meet_all("stmatrix", &operands, store_compute, where);
}

uint32_t transpose_matrix(uint32_t matrix, Where where) {
  MatrixOperands operands{.count = 1, .transposed = true, .row = nullptr, .matrices = &matrix, .where = where};
  meet_all("movmatrix", &operands, transpose_compute, where);
  return matrix;
}

}  // namespace fastnn::emulator
