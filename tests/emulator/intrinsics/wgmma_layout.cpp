#include "wgmma_layout.h"

#include <algorithm>

namespace fastnn::emulator {
namespace {

constexpr uint64_t field(uint32_t bytes, unsigned position) {
  return static_cast<uint64_t>((bytes & (kDescriptorWindow - 1)) >> 4) << position;
}
constexpr uint32_t bytes_at(uint64_t bits, unsigned position) {
  return static_cast<uint32_t>(bits >> position & 0x3fff) << 4;
}
constexpr uint64_t kReserved = 0x3ull << 14 | 0x3ull << 30 | 0x7ull << 46 | 0x3ffull << 52;

// 128-byte lines after which the pattern repeats, less one: which of the address bits from 7 on are xored into
// those from 4 on.
constexpr unsigned line_mask(unsigned swizzle) { return swizzle / 16 - 1; }

}  // namespace

uint64_t encode(const MatrixDescriptor& descriptor) {
  const uint64_t mode = descriptor.swizzle == 128  ? 1
                        : descriptor.swizzle == 64 ? 2
                        : descriptor.swizzle == 32 ? 3
                                                   : 0;
  return field(descriptor.start, 0) | field(descriptor.leading, 16) | field(descriptor.stride, 32) |
         static_cast<uint64_t>(descriptor.base_offset & 7) << 49 | mode << 62;
}

const char* decode(uint64_t bits, MatrixDescriptor& descriptor) {
  static constexpr unsigned kSwizzles[] = {16, 128, 64, 32};
  descriptor = {.start = bytes_at(bits, 0),
                .leading = bytes_at(bits, 16),
                .stride = bytes_at(bits, 32),
                .base_offset = static_cast<unsigned>(bits >> 49 & 7),
                .swizzle = kSwizzles[bits >> 62]};
  if (bits & kReserved) return "bits that must be zero are set";
  const unsigned mask = line_mask(descriptor.swizzle);
  if (mask == 0) return descriptor.base_offset == 0 ? nullptr : "a base offset needs a swizzle";
  if ((((descriptor.start >> 7) - descriptor.base_offset) & mask) != 0) {
    return "the start is not in the first row of the swizzle's pattern, which repeats every 1024, 512 or 256 "
           "bytes for "
           "128, 64 or 32: align the tile, or give the base offset";
  }
  return nullptr;
}

uint32_t element_address(const MatrixDescriptor& descriptor, MatrixForm form, unsigned mn, unsigned k) {
  const unsigned bytes = form.element_bytes, swizzle = descriptor.swizzle;
  uint32_t address = descriptor.start;
  if (!form.mn_major) {
    const unsigned k_bytes = k * bytes;
    address += mn % 8 * swizzle + mn / 8 * descriptor.stride;
    address += swizzle == 16 ? k_bytes / 16 * descriptor.leading + k_bytes % 16 : k_bytes;
  } else {
    const unsigned width = swizzle / bytes;
    const uint32_t across = swizzle == 16 ? descriptor.stride : descriptor.leading;
    const uint32_t along = swizzle == 16 ? descriptor.leading : descriptor.stride;
    address += mn % width * bytes + mn / width * across + k % 8 * swizzle + k / 8 * along;
  }
  return address ^ (((address >> 7) - descriptor.base_offset) & line_mask(swizzle)) << 4;
}

void append_spans(const MatrixDescriptor& descriptor, MatrixForm form, unsigned first, unsigned last,
                  std::vector<SharedSpan>& spans) {
  const auto begin = static_cast<std::ptrdiff_t>(spans.size());
  const auto append = [&](unsigned mn, unsigned k) {
    const uint32_t address = element_address(descriptor, form, mn, k);
    spans.push_back({.begin = address, .end = address + 16});
  };
  if (form.mn_major) {
    for (unsigned mn = first; mn < last; mn += 8) {
      for (unsigned k = 0; k < form.depth(); ++k) append(mn, k);
    }
  } else {
    for (unsigned mn = first; mn < last; ++mn) {
      append(mn, 0);
      append(mn, form.depth() / 2);
    }
  }
  std::sort(spans.begin() + begin, spans.end(),
            [](const SharedSpan& a, const SharedSpan& b) { return a.begin < b.begin; });
  auto merged = spans.begin() + begin;
  for (auto span = merged + 1; span < spans.end(); ++span) {
    if (span->begin <= merged->end) {
      merged->end = std::max(merged->end, span->end);
    } else {
      *++merged = *span;
    }
  }
  spans.erase(merged + 1, spans.end());
}

}  // namespace fastnn::emulator
