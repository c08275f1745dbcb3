#include "tensor_map.h"

#include <algorithm>
#include <cstring>

#include "atomics.h"
#include "half_types.h"

namespace fastnn::cuda {
namespace {

TensorMap make_map(TensorMap::Kind kind, TensorType type, int rank, void* address, const uint64_t* sizes,
                   const uint64_t* strides, const uint32_t* element_strides, TensorSwizzle swizzle,
                   bool nan_fill) {
  TensorMap map{};
  map.kind = kind;
  map.type = type;
  map.swizzle = swizzle;
  map.nan_fill = nan_fill;
  map.rank = static_cast<uint8_t>(rank);
  map.address = static_cast<unsigned char*>(address);
  for (int i = 0; i < rank; ++i) {
    map.last[i] = static_cast<uint32_t>(sizes[i] - 1);
    map.element_strides[i] = static_cast<uint8_t>(i == 0 ? 1 : element_strides[i]);
    if (i > 0) map.strides[i - 1] = strides[i];
  }
  return map;
}

}  // namespace

Status make_tiled_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                      const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                      TensorSwizzle swizzle, bool nan_fill) {
  map = make_map(TensorMap::Kind::kTiled, type, rank, address, sizes, strides, element_strides, swizzle,
                 nan_fill);
  for (int i = 0; i < rank; ++i) map.box[i] = static_cast<uint16_t>(box[i]);
  return Status::success();
}

Status make_im2col_map(TensorMap& map, TensorType type, int rank, void* address, const uint64_t* sizes,
                       const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                       uint32_t pixels, const uint32_t* element_strides, TensorSwizzle swizzle, bool nan_fill) {
  map = make_map(TensorMap::Kind::kIm2col, type, rank, address, sizes, strides, element_strides, swizzle,
                 nan_fill);
  for (int i = 0; i < rank - 2; ++i) {
    map.lower[i] = static_cast<int16_t>(lower[i]);
    map.upper[i] = static_cast<int16_t>(upper[i]);
  }
  map.channels = static_cast<uint16_t>(channels);
  map.pixels = static_cast<uint16_t>(pixels);
  return Status::success();
}

}  // namespace fastnn::cuda

namespace fastnn::emulator {
namespace {

constexpr uint32_t kChunk = 16;

// The part of a row of `elements` elements from element `first` of dimension 0 on that is inside.
BoxRow inside(const TensorMap& map, unsigned char* start, int64_t first, int64_t elements) {
  const int64_t begin = std::clamp<int64_t>(-first, 0, elements);
  const int64_t end = std::clamp<int64_t>(map.size(0) - first, begin, elements);
  if (begin == end) return {nullptr, 0, 0};
  const auto bytes = static_cast<int64_t>(size_of(map.type));
  return {start + (first + begin) * bytes, static_cast<uint32_t>(begin * bytes),
          static_cast<uint32_t>(end * bytes)};
}

// What out-of-bounds elements become, for 16 bytes. CUDA says of the NaN only that it is a special one.
void fill_chunk(const Box& box, unsigned char* chunk) {
  std::memset(chunk, box.nan_fill ? 0xff : 0, kChunk);
  if (!box.nan_fill) return;
  const size_t element = size_of(box.type);
  for (size_t i = element - 1; i < kChunk; i += element) chunk[i] = 0x7f;
}

// To 10 bits of mantissa, ties to even, as the copy engine does to tf32 tensors.
uint32_t round_to_tf32(uint32_t bits) {
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0xfff + (bits >> 13 & 1)) & ~uint32_t{0x1fff};
}

template <typename F>
void for_each_chunk(const Box& box, uint32_t address, F f) {
  uint32_t offset = 0;
  for (const BoxRow& row : box.rows) {
    for (uint32_t i = 0; i < box.row_bytes; i += kChunk, offset += kChunk) {
      const uint32_t begin = std::clamp(row.begin, i, i + kChunk), end = std::clamp(row.end, i, i + kChunk);
      unsigned char* const global = begin < end ? row.global + (begin - row.begin) : nullptr;
      f(swizzled(address + offset, box.swizzle) - address, global, begin - i, end - i);
    }
  }
}

template <typename Bits, typename Add>
void add_elements(unsigned char* global, const unsigned char* shared, uint32_t bytes, Add add) {
  for (uint32_t i = 0; i < bytes; i += sizeof(Bits)) {
    Bits value;
    std::memcpy(&value, shared + i, sizeof(Bits));
    fetch_modify(reinterpret_cast<Bits*>(global + i), [&](Bits old) { return add(old, value); });
  }
}

template <typename Half>
uint16_t add_halves(uint16_t a, uint16_t b) {
  return cuda::from_acc<Half>(cuda::to_acc(Half{a}) + cuda::to_acc(Half{b})).bits;
}

}  // namespace

size_t size_of(TensorType type) {
  switch (type) {
    case TensorType::kUInt8:
      return 1;
    case TensorType::kFloat16:
    case TensorType::kBFloat16:
      return 2;
    case TensorType::kInt32:
    case TensorType::kFloat32:
    case TensorType::kTFloat32:
      return 4;
    case TensorType::kFloat64:
      return 8;
  }
  return 0;
}

Box plain_box(const void* global, uint32_t bytes) {
  auto* const start = static_cast<unsigned char*>(const_cast<void*>(global));
  return {TensorType::kUInt8, TensorSwizzle::kNone, false, bytes, {{start, 0, bytes}}};
}

Box tiled_box(const TensorMap& map, const int* coordinates) {
  Box box{map.type, map.swizzle, map.nan_fill, static_cast<uint32_t>(map.box[0] * size_of(map.type)), {}};
  int64_t counts[5] = {1, 1, 1, 1, 1}, index[5] = {};
  size_t rows = 1;
  for (int i = 1; i < map.rank; ++i) {
    counts[i] = (map.box[i] + map.element_strides[i] - 1) / map.element_strides[i];
    rows *= static_cast<size_t>(counts[i]);
  }
  box.rows.reserve(rows);
  for (size_t r = 0; r < rows; ++r) {
    bool outside = false;
    int64_t offset = 0;
    for (int i = 1; i < map.rank; ++i) {
      const int64_t at = coordinates[i] + index[i] * map.element_strides[i];
      outside = outside || at < 0 || at >= map.size(i);
      offset += at * static_cast<int64_t>(map.strides[i - 1]);
    }
    box.rows.push_back(outside ? BoxRow{nullptr, 0, 0}
                               : inside(map, map.address + offset, coordinates[0], map.box[0]));
    for (int i = 1; i < map.rank && ++index[i] == counts[i]; ++i) index[i] = 0;
  }
  return box;
}

const char* im2col_box(const TensorMap& map, const int* coordinates, const int* offsets, Box& box) {
  box = {map.type, map.swizzle, map.nan_fill, static_cast<uint32_t>(map.channels * size_of(map.type)), {}};
  const int spatial = map.rank - 2;
  int64_t at[3] = {}, last[3] = {}, n = coordinates[map.rank - 1];
  const int limit = map.rank == 3 ? 1 << 16 : map.rank == 4 ? 1 << 8 : 1 << 5;
  for (int i = 0; i < spatial; ++i) {
    at[i] = coordinates[1 + i];
    last[i] = map.size(1 + i) - 1 + map.upper[i];
    if (at[i] < map.lower[i] || at[i] > last[i]) return "the pixel to start with is outside the corners";
    if (offsets[i] < 0 || offsets[i] >= limit) return "an offset is out of range";
  }
  box.rows.reserve(map.pixels);
  for (int p = 0; p < map.pixels; ++p) {
    bool outside = n < 0 || n >= map.size(map.rank - 1);
    int64_t offset = n * static_cast<int64_t>(map.strides[map.rank - 2]);
    for (int i = 0; i < spatial; ++i) {
      const int64_t pixel = at[i] + offsets[i];
      outside = outside || pixel < 0 || pixel >= map.size(1 + i);
      offset += pixel * static_cast<int64_t>(map.strides[i]);
    }
    box.rows.push_back(outside ? BoxRow{nullptr, 0, 0}
                               : inside(map, map.address + offset, coordinates[0], map.channels));
    int i = 0;
    for (; i < spatial; ++i) {
      at[i] += map.element_strides[1 + i];
      if (at[i] <= last[i]) break;
      at[i] = map.lower[i];
    }
    if (i == spatial) ++n;
  }
  return nullptr;
}

uint32_t swizzled(uint32_t address, TensorSwizzle swizzle) {
  const uint32_t line = address >> 7;
  switch (swizzle) {
    case TensorSwizzle::kNone:
      return address;
    case TensorSwizzle::k32B:
      return address ^ (line & 1) << 4;
    case TensorSwizzle::k64B:
      return address ^ (line & 3) << 4;
    case TensorSwizzle::k128B:
      return address ^ (line & 7) << 4;
  }
  return address;
}

void load_box(const Box& box, unsigned char* shared, uint32_t address) {
  for_each_chunk(box, address, [&](uint32_t place, const unsigned char* global, uint32_t begin, uint32_t end) {
    unsigned char chunk[kChunk];
    if (end - begin != kChunk) fill_chunk(box, &chunk[0]);
    if (global != nullptr) std::memcpy(&chunk[begin], global, end - begin);
    if (box.type == TensorType::kTFloat32) {
      uint32_t words[kChunk / 4];
      std::memcpy(&words[0], &chunk[0], kChunk);
      for (uint32_t& word : words) word = round_to_tf32(word);
      std::memcpy(&chunk[0], &words[0], kChunk);
    }
    std::memcpy(shared + place, &chunk[0], kChunk);
  });
}

void store_box(const Box& box, const unsigned char* shared, uint32_t address) {
  for_each_chunk(box, address, [&](uint32_t place, unsigned char* global, uint32_t begin, uint32_t end) {
    if (global != nullptr) std::memcpy(global, shared + place + begin, end - begin);
  });
}

bool can_add(TensorType type) {
  return type == TensorType::kInt32 || type == TensorType::kFloat32 || type == TensorType::kFloat16 ||
         type == TensorType::kBFloat16;
}

void add_box(const Box& box, const unsigned char* shared, uint32_t address) {
  for_each_chunk(box, address, [&](uint32_t place, unsigned char* global, uint32_t begin, uint32_t end) {
    if (global == nullptr) return;
    const unsigned char* const source = shared + place + begin;
    switch (box.type) {
      case TensorType::kInt32:
        return add_elements<uint32_t>(global, source, end - begin,
                                      [](uint32_t a, uint32_t b) { return a + b; });
      case TensorType::kFloat16:
        return add_elements<uint16_t>(global, source, end - begin, add_halves<cuda::float16_t>);
      case TensorType::kBFloat16:
        return add_elements<uint16_t>(global, source, end - begin, add_halves<cuda::bfloat16_t>);
      default:
        return add_elements<float>(global, source, end - begin, [](float a, float b) { return a + b; });
    }
  });
}

}  // namespace fastnn::emulator
