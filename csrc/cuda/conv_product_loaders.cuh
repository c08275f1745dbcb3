// How the tiles of a pipelined product get their operands from global memory, for each order in which these
// may lie there. A loader belongs to one thread and knows what this thread fetches of every step of k:
//
//   issue(stage)    starts the copies of the next step, asynchronous ones or loads into registers, and moves on
//   finish(stage)   stores what issue() has loaded into registers; nothing where all copies are asynchronous
//
// Forward and the data gradient walk k tap by tap, of each tap the leads (channels of x, or filters) in steps
// of kStepDepth, the last of them filled up with zeros. Within a step the tap is the same: whether a column's
// position lies inside, and where, is found once a tap and not once an element. Products of few leads, for
// which that would be mostly zeros, walk the (tap, lead) pairs without gaps and find both for each element.
//
//   loader               A                              B                                     copies
//   ChannelsLoader       filters along k or rows        channels side by side                 16 bytes,
//   cp.async PlanesLoader         filters along k                any strides, columns run along threads 4 bytes
//   cp.async of ElementsLoader       filters along k, without gaps  the same, each element found alone floats,
//   registers of halves
//
// The weight gradient walks k over the positions of y:
//
//   PositionVectorsLoader     filters of grad_y side by side, channels of x likewise          16 bytes,
//   cp.async PositionElementsLoader    any strides, k runs along threads                               like
//   PlanesLoader
//
// Elements of half types go through registers since cp.async copies four bytes at the least; two that lie
// together in an aligned word are loaded as one.
#pragma once

#include <climits>
#include <cstdint>

#include "async_copy.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_product_tiles.cuh"
#include "conv_tile_place.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// A kernel's names: by CUDA cores or tensor cores, of the small tile or the large one.
struct NameTable {
  const char* name[2][2];
  constexpr auto& operator[](bool tensor_cores) const { return name[tensor_cores]; }
};
#define FASTNN_PRODUCT_NAMES(loader)                                 \
  {                                                                  \
    {                                                                \
      {"conv_fma_" loader "_small", "conv_fma_" loader "_large"},    \
          {"conv_mma_" loader "_small", "conv_mma_" loader "_large"} \
    }                                                                \
  }

// What a loader is made from. a and b begin at the group's part, a at the class's first tap.
template <typename scalar_t>
struct LoaderArguments {
  const ConvGemm& p;
  const ClassView& view;
  const TilePlace& place;
  const scalar_t* a;
  const scalar_t* b;
  int64_t first_step;
};

// A coordinate that is inside of nothing, with whatever is added to it.
constexpr int kOutside = INT_MIN / 2;

__device__ __forceinline__ bool is_inside(const ConvGemm& p, int d, int h, int w) {
  return static_cast<unsigned>(d) < static_cast<unsigned>(p.limit[0]) &&
         static_cast<unsigned>(h) < static_cast<unsigned>(p.limit[1]) &&
         static_cast<unsigned>(w) < static_cast<unsigned>(p.limit[2]);
}

// The entry of a column of the block's tile, outside of everything where there is no such column.
template <typename scalar_t>
__device__ __forceinline__ ColEntry<int> col_of_tile(const LoaderArguments<scalar_t>& args, int col) {
  if (col >= args.place.cols_here) return {0, kOutside, kOutside, kOutside};
  return col_entry<int>(args.p, args.view, args.place.col0 + col);
}

// The same of all columns of the tile, in shared memory; to be read after a barrier.
template <typename Tile, typename scalar_t>
__device__ __forceinline__ const ColEntry<int>* tabulate_cols(const LoaderArguments<scalar_t>& args,
                                                              unsigned char* shared_table) {
  auto* const table = reinterpret_cast<ColEntry<int>*>(shared_table);
  for (int i = threadIdx.x; i < Tile::kN; i += Tile::kThreads) table[i] = col_of_tile(args, i);
  return table;
}

// Where a step of forward or of the data gradient stands.
template <typename scalar_t>
struct TapWalk {
  int64_t a, b;  // what the tap adds to the offsets of A and B
  int d, h, w;   // and to the coordinates of B
  int lead;      // of the step's first k

  __device__ __forceinline__ TapWalk(const ConvGemm& p, const ClassView& view, int64_t step) {
    const int64_t steps_of_tap = ceil_div(p.depth.lead, kStepDepth<scalar_t>);
    int64_t tap = quotient(step, steps_of_tap);
    lead = static_cast<int>(step - tap * steps_of_tap) * kStepDepth<scalar_t>;
    const int64_t dh = quotient(tap, view.depth.spatial[2]);
    tap_[2] = static_cast<int>(tap - dh * view.depth.spatial[2]);
    tap_[0] = static_cast<int>(quotient(dh, view.depth.spatial[1]));
    tap_[1] = static_cast<int>(dh - tap_[0] * view.depth.spatial[1]);
    locate(p);
  }

  __device__ __forceinline__ void next(const ConvGemm& p, const ClassView& view) {
    lead += kStepDepth<scalar_t>;
    if (lead < p.depth.lead) return;
    lead = 0;
    if (++tap_[2] == view.depth.spatial[2]) {
      tap_[2] = 0;
      if (++tap_[1] == view.depth.spatial[1]) {
        tap_[1] = 0;
        ++tap_[0];
      }
    }
    locate(p);
  }

 private:
  int tap_[kSpatialDims];

  __device__ __forceinline__ void locate(const ConvGemm& p) {
    const auto entry = depth_entry<int>(p, {0, tap_[0], tap_[1], tap_[2]});
    a = entry.a;
    b = entry.b;
    d = entry.d;
    h = entry.h;
    w = entry.w;
  }
};

// A's tile by copies of 16 bytes, from rows whose leads lie side by side.
template <typename scalar_t, typename Tile>
struct FilterRows {
  using Operand = OperandTile<scalar_t, true, Tile::kM>;
  static constexpr int kRowsAtOnce = Tile::kThreads / kChunksInStep;
  static constexpr int kCopies = Tile::kM / kRowsAtOnce;
  const scalar_t* rows;  // of the thread's first row and chunk
  int64_t row_step;
  int valid;  // how many of the thread's copies have a row
  int row, chunk;

  __device__ __forceinline__ explicit FilterRows(const LoaderArguments<scalar_t>& args)
      : row_step(kRowsAtOnce * args.p.a_row),
        row(static_cast<int>(threadIdx.x) / kChunksInStep),
        chunk(static_cast<int>(threadIdx.x) % kChunksInStep) {
    rows = args.a + (args.place.row0 + row) * args.p.a_row + chunk * kVecSize<scalar_t>;
    valid = args.place.rows_here > row ? (args.place.rows_here - row + kRowsAtOnce - 1) / kRowsAtOnce : 0;
  }

  // The leads from `lead` on, of `leads` that there are, which is a multiple of a chunk.
  __device__ __forceinline__ void load(unsigned char* tile, int64_t offset, int lead, int64_t leads) const {
    const bool inside = lead + chunk * kVecSize<scalar_t> < leads;
    const scalar_t* const from = rows + offset + lead;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool copies = inside && i < valid;
      cp_async_zero_fill<kVecBytes>(tile + Operand::chunk_offset(row + i * kRowsAtOnce, chunk),
                                    copies ? from + i * row_step : nullptr, copies ? kVecBytes : 0);
    }
  }
};

// A's tile by copies of 16 bytes, from leads whose rows lie side by side.
template <typename scalar_t, typename Tile>
struct FilterColumns {
  using Operand = OperandTile<scalar_t, false, Tile::kM>;
  static constexpr int kLinesAtOnce = Tile::kThreads / Operand::kLineChunks;
  static constexpr int kCopies = kStepDepth<scalar_t> / kLinesAtOnce;
  const scalar_t* leads_begin;
  int64_t lead_stride;
  int line, chunk;
  bool has_rows;

  __device__ __forceinline__ explicit FilterColumns(const LoaderArguments<scalar_t>& args)
      : lead_stride(args.p.a_depth[0]),
        line(static_cast<int>(threadIdx.x) / Operand::kLineChunks),
        chunk(static_cast<int>(threadIdx.x) % Operand::kLineChunks) {
    leads_begin = args.a + args.place.row0 + chunk * kVecSize<scalar_t>;
    has_rows = chunk * kVecSize<scalar_t> < args.place.rows_here;
  }

  __device__ __forceinline__ void load(unsigned char* tile, int64_t offset, int lead, int64_t leads) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int k = line + i * kLinesAtOnce;
      const bool copies = has_rows && lead + k < leads;
      cp_async_zero_fill<kVecBytes>(tile + Operand::chunk_offset(k, chunk),
                                    copies ? leads_begin + offset + (lead + k) * lead_stride : nullptr,
                                    copies ? kVecBytes : 0);
    }
  }
};

template <typename scalar_t_, typename Tile, bool kFiltersAlongRows>
struct ChannelsLoader {
  using scalar_t = scalar_t_;
  using Filters =
      std::conditional_t<kFiltersAlongRows, FilterColumns<scalar_t, Tile>, FilterRows<scalar_t, Tile>>;
  using OperandA = typename Filters::Operand;
  using OperandB = OperandTile<scalar_t, true, Tile::kN>;
  static constexpr NameTable kNames = kFiltersAlongRows ? NameTable FASTNN_PRODUCT_NAMES("channels_filter_rows")
                                                        : NameTable FASTNN_PRODUCT_NAMES("channels");
  static constexpr bool kActivates = true;  // whether out may be y
  // The columns' entries, of which a thread holding its own would lack registers.
  static constexpr int kTableBytes = Tile::kN * static_cast<int>(sizeof(ColEntry<int>));
  static constexpr int kColsAtOnce = Tile::kThreads / kChunksInStep;
  static constexpr int kCopies = Tile::kN / kColsAtOnce;

  const ConvGemm& p;
  const ClassView& view;
  const scalar_t* b;
  Filters filters;
  TapWalk<scalar_t> walk;
  const ColEntry<int>* cols;
  int col, chunk;

  __device__ __forceinline__ static int64_t steps(const ConvGemm& p, const ClassView& view) {
    return view.depth.spatial[0] * view.depth.spatial[1] * view.depth.spatial[2] *
           ceil_div(p.depth.lead, kStepDepth<scalar_t>);
  }

  __device__ __forceinline__ ChannelsLoader(const LoaderArguments<scalar_t>& args, unsigned char* shared_table)
      : p(args.p),
        view(args.view),
        filters(args),
        walk(args.p, args.view, args.first_step),
        col(static_cast<int>(threadIdx.x) / kChunksInStep),
        chunk(static_cast<int>(threadIdx.x) % kChunksInStep) {
    b = args.b + chunk * kVecSize<scalar_t>;
    cols = tabulate_cols<Tile>(args, shared_table);
  }

  __device__ __forceinline__ void issue(unsigned char* tile_a, unsigned char* tile_b) {
    filters.load(tile_a, walk.a, walk.lead, p.filter_leads);
    const bool has_lead = walk.lead + chunk * kVecSize<scalar_t> < p.depth.lead;
    const scalar_t* const from = b + walk.b + walk.lead;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const ColEntry<int> entry = cols[col + i * kColsAtOnce];
      const bool copies = has_lead && is_inside(p, entry.d + walk.d, entry.h + walk.h, entry.w + walk.w);
      cp_async_zero_fill<kVecBytes>(tile_b + OperandB::chunk_offset(col + i * kColsAtOnce, chunk),
                                    copies ? from + entry.b : nullptr, copies ? kVecBytes : 0);
    }
    walk.next(p, view);
  }
  __device__ __forceinline__ void finish(unsigned char*, unsigned char*) const {}
};

// The elements of B that a thread of PlanesLoader and ElementsLoader fetches: of each of kLines lines of k one
// unit of 4 bytes, one column of floats or two of halves.
template <typename scalar_t, typename Tile>
struct ColumnUnits {
  using Operand = OperandTile<scalar_t, false, Tile::kN>;
  static constexpr int kInUnit = 4 / static_cast<int>(sizeof(scalar_t));
  static constexpr int kUnits = Tile::kN / kInUnit;
  static constexpr int kLinesAtOnce = Tile::kThreads / kUnits;
  static constexpr int kLines = kStepDepth<scalar_t> / kLinesAtOnce;
  using Unit = Vec<scalar_t, kInUnit>;

  ColEntry<int> cols[kInUnit];
  int unit, line;
  bool together;  // two columns that lie side by side in B
  Unit values[kLines];

  __device__ __forceinline__ explicit ColumnUnits(const LoaderArguments<scalar_t>& args)
      : unit(static_cast<int>(threadIdx.x) % kUnits), line(static_cast<int>(threadIdx.x) / kUnits) {
#pragma unroll
    for (int i = 0; i < kInUnit; ++i) cols[i] = col_of_tile(args, unit * kInUnit + i);
    together = kInUnit == 2 && cols[kInUnit - 1].b - cols[0].b == 1;
  }

  __device__ __forceinline__ int line_of(int i) const { return line + i * kLinesAtOnce; }

  // Line i, from columns that are `inside`: b points to what offsets of columns are added to.
  __device__ __forceinline__ void load(int i, const scalar_t* b, const bool (&inside)[kInUnit],
                                       unsigned char* tile) {
    if constexpr (kInUnit == 1) {
      cp_async_zero_fill<4>(tile + Operand::element_offset(line_of(i), unit),
                            inside[0] ? b + cols[0].b : nullptr, inside[0] ? 4 : 0);
    } else {
      const scalar_t* const first = b + cols[0].b;
      if (together && inside[0] && inside[1] && reinterpret_cast<uintptr_t>(first) % sizeof(Unit) == 0) {
        values[i] = *reinterpret_cast<const Unit*>(first);
      } else {
        const scalar_t zero = from_acc<scalar_t>(0.0f);
        values[i].v[0] = inside[0] ? *first : zero;
        values[i].v[1] = inside[1] ? b[cols[1].b] : zero;
      }
    }
  }

  __device__ __forceinline__ void finish(unsigned char* tile) const {
    if constexpr (kInUnit == 2) {
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        *reinterpret_cast<Unit*>(tile + Operand::element_offset(line_of(i), unit * kInUnit)) = values[i];
      }
    }
  }
};

template <typename scalar_t_, typename Tile>
struct PlanesLoader {
  using scalar_t = scalar_t_;
  using Units = ColumnUnits<scalar_t, Tile>;
  using OperandA = typename FilterRows<scalar_t, Tile>::Operand;
  using OperandB = typename Units::Operand;
  static constexpr NameTable kNames = FASTNN_PRODUCT_NAMES("planes");
  static constexpr bool kActivates = true;  // whether out may be y
  static constexpr int kTableBytes = 0;

  const ConvGemm& p;
  const ClassView& view;
  const scalar_t* b;
  FilterRows<scalar_t, Tile> filters;
  TapWalk<scalar_t> walk;
  Units units;

  __device__ __forceinline__ static int64_t steps(const ConvGemm& p, const ClassView& view) {
    return ChannelsLoader<scalar_t, Tile, false>::steps(p, view);
  }

  __device__ __forceinline__ PlanesLoader(const LoaderArguments<scalar_t>& args, unsigned char*)
      : p(args.p),
        view(args.view),
        b(args.b),
        filters(args),
        walk(args.p, args.view, args.first_step),
        units(args) {}

  __device__ __forceinline__ void issue(unsigned char* tile_a, unsigned char* tile_b) {
    filters.load(tile_a, walk.a, walk.lead, p.filter_leads);
    bool inside[Units::kInUnit];
#pragma unroll
    for (int i = 0; i < Units::kInUnit; ++i) {
      inside[i] = is_inside(p, units.cols[i].d + walk.d, units.cols[i].h + walk.h, units.cols[i].w + walk.w);
    }
#pragma unroll
    for (int i = 0; i < Units::kLines; ++i) {
      const int lead = walk.lead + units.line_of(i);
      bool loads[Units::kInUnit];
#pragma unroll
      for (int j = 0; j < Units::kInUnit; ++j) loads[j] = inside[j] && lead < p.depth.lead;
      units.load(i, b + walk.b + lead * p.b_depth_lead, loads, tile_b);
    }
    walk.next(p, view);
  }
  __device__ __forceinline__ void finish(unsigned char*, unsigned char* tile_b) const { units.finish(tile_b); }
};

template <typename scalar_t_, typename Tile>
struct ElementsLoader {
  using scalar_t = scalar_t_;
  using Units = ColumnUnits<scalar_t, Tile>;
  using OperandA = typename FilterRows<scalar_t, Tile>::Operand;
  using OperandB = typename Units::Operand;
  // Of two steps: while one is fetched the next one's is written.
  static constexpr int kDepth = kStepDepth<scalar_t>;
  static constexpr NameTable kNames = FASTNN_PRODUCT_NAMES("elements");
  static constexpr bool kActivates = true;  // whether out may be y
  static constexpr int kTableBytes = 2 * kDepth * static_cast<int>(sizeof(DepthEntry<int>));

  const ConvGemm& p;
  const ClassView& view;
  const scalar_t* b;
  FilterRows<scalar_t, Tile> filters;
  Units units;
  DepthEntry<int>* table;
  int64_t k;  // of the step
  int slot = 0;
  Digits<int> depth{}, depth_advance{};  // of the first kDepth threads: of the step that is tabulated next

  __device__ __forceinline__ static int64_t steps(const ConvGemm&, const ClassView& view) {
    return ceil_div(view.depth.size(), kDepth);
  }

  __device__ __forceinline__ ElementsLoader(const LoaderArguments<scalar_t>& args, unsigned char* shared_table)
      : p(args.p),
        view(args.view),
        b(args.b),
        filters(args),
        units(args),
        table(reinterpret_cast<DepthEntry<int>*>(shared_table)),
        k(args.first_step * kDepth) {
    if (threadIdx.x < kDepth) {
      depth = digits_of<int>(k + threadIdx.x, view.depth);
      depth_advance = digits_of<int>(kDepth, view.depth);
    }
    tabulate(0, k);
  }

  __device__ __forceinline__ void tabulate(int to, int64_t first) {
    if (threadIdx.x >= kDepth) return;
    auto entry = depth_entry<int>(p, depth);
    if (first + threadIdx.x >= view.depth.size()) entry.d = kOutside;
    table[to * kDepth + threadIdx.x] = entry;
    advance(depth, depth_advance, view.depth);
  }

  __device__ __forceinline__ void issue(unsigned char* tile_a, unsigned char* tile_b) {
    filters.load(tile_a, k, 0, p.filter_leads - k);
#pragma unroll
    for (int i = 0; i < Units::kLines; ++i) {
      const DepthEntry<int> entry = table[slot * kDepth + units.line_of(i)];
      bool inside[Units::kInUnit];
#pragma unroll
      for (int j = 0; j < Units::kInUnit; ++j) {
        const auto& col = units.cols[j];
        // Two coordinates that are outside must not meet inside.
        inside[j] = col.d != kOutside && is_inside(p, col.d + entry.d, col.h + entry.h, col.w + entry.w);
      }
      units.load(i, b + entry.b, inside, tile_b);
    }
    k += kDepth;
    slot ^= 1;
    tabulate(slot, k);
  }
  __device__ __forceinline__ void finish(unsigned char*, unsigned char* tile_b) const { units.finish(tile_b); }
};

// ---- the weight gradient: k is a position of y --------------------------------------------------------------

// The lines of k, positions of y, of which a thread copies one chunk of an operand's tile each.
template <typename Operand, int kDepth, int kThreads>
struct PositionLines {
  static constexpr int kAtOnce = kThreads / Operand::kLineChunks;
  static constexpr int kCopies = kDepth / kAtOnce;
  int line, chunk;
  Digits<int> positions[kCopies];

  __device__ __forceinline__ PositionLines(int64_t k, const IndexRange& depth)
      : line(static_cast<int>(threadIdx.x) / Operand::kLineChunks),
        chunk(static_cast<int>(threadIdx.x) % Operand::kLineChunks) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) positions[i] = digits_of<int>(k + line_of(i), depth);
  }
  __device__ __forceinline__ int line_of(int i) const { return line + i * kAtOnce; }
};

template <typename scalar_t_, typename Tile>
struct PositionVectorsLoader {
  using scalar_t = scalar_t_;
  using OperandA = OperandTile<scalar_t, false, Tile::kM>;
  using OperandB = OperandTile<scalar_t, false, Tile::kN>;
  static constexpr NameTable kNames = FASTNN_PRODUCT_NAMES("position_vectors");
  static constexpr bool kActivates = false;
  static constexpr int kTableBytes = 0;
  static constexpr int kDepth = kStepDepth<scalar_t>;
  using LinesA = PositionLines<OperandA, kDepth, Tile::kThreads>;
  using LinesB = PositionLines<OperandB, kDepth, Tile::kThreads>;
  // Of tiles as high as wide a thread's lines are the same in both.
  static constexpr bool kSameLines = Tile::kM == Tile::kN;

  const ConvGemm& p;
  const ClassView& view;
  const scalar_t* a;
  const scalar_t* b;
  ColEntry<int> col;  // of the chunk's first
  int64_t left;       // positions from the step's first on
  LinesA lines_a;
  LinesB lines_b;
  Digits<int> step;
  bool has_rows;

  __device__ __forceinline__ static int64_t steps(const ConvGemm&, const ClassView& view) {
    return ceil_div(view.depth.size(), kDepth);
  }

  __device__ __forceinline__ PositionVectorsLoader(const LoaderArguments<scalar_t>& args, unsigned char*)
      : p(args.p),
        view(args.view),
        b(args.b),
        left(view.depth.size() - args.first_step * kDepth),
        lines_a(args.first_step * kDepth, view.depth),
        lines_b(args.first_step * kDepth, view.depth),
        step(digits_of<int>(kDepth, view.depth)) {
    const int first = lines_a.chunk * kVecSize<scalar_t>;
    a = args.a + args.place.row0 + first;
    has_rows = first < args.place.rows_here;
    col = col_of_tile(args, lines_b.chunk * kVecSize<scalar_t>);
  }

  __device__ __forceinline__ void copy_a(unsigned char* tile, int i, const DepthEntry<int>& entry) const {
    const bool copies = lines_a.line_of(i) < left && has_rows;
    cp_async_zero_fill<kVecBytes>(tile + OperandA::chunk_offset(lines_a.line_of(i), lines_a.chunk),
                                  copies ? a + entry.a : nullptr, copies ? kVecBytes : 0);
  }

  __device__ __forceinline__ void issue(unsigned char* tile_a, unsigned char* tile_b) {
#pragma unroll
    for (int i = 0; i < LinesB::kCopies; ++i) {
      const auto entry = depth_entry<int>(p, lines_b.positions[i]);
      const bool copies = lines_b.line_of(i) < left && col.d != kOutside &&
                          is_inside(p, entry.d + col.d, entry.h + col.h, entry.w + col.w);
      cp_async_zero_fill<kVecBytes>(tile_b + OperandB::chunk_offset(lines_b.line_of(i), lines_b.chunk),
                                    copies ? b + entry.b + col.b : nullptr, copies ? kVecBytes : 0);
      if constexpr (kSameLines) copy_a(tile_a, i, entry);
      advance(lines_b.positions[i], step, view.depth);
    }
    if constexpr (!kSameLines) {
#pragma unroll
      for (int i = 0; i < LinesA::kCopies; ++i) {
        copy_a(tile_a, i, depth_entry<int>(p, lines_a.positions[i]));
        advance(lines_a.positions[i], step, view.depth);
      }
    }
    left -= kDepth;
  }
  __device__ __forceinline__ void finish(unsigned char*, unsigned char*) const {}
};

template <typename scalar_t_, typename Tile>
struct PositionElementsLoader {
  using scalar_t = scalar_t_;
  using OperandA = OperandTile<scalar_t, true, Tile::kM>;
  using OperandB = OperandTile<scalar_t, true, Tile::kN>;
  static constexpr int kInUnit = 4 / static_cast<int>(sizeof(scalar_t));
  using Unit = Vec<scalar_t, kInUnit>;
  static constexpr int kDepth = kStepDepth<scalar_t>;
  static constexpr int kUnits = kDepth / kInUnit;  // of a row
  static constexpr int kRowsAtOnce = Tile::kThreads / kUnits;
  static constexpr int kRows = Tile::kM / kRowsAtOnce, kCols = Tile::kN / kRowsAtOnce;
  static constexpr NameTable kNames = FASTNN_PRODUCT_NAMES("position_elements");
  static constexpr bool kActivates = false;
  static constexpr int kTableBytes = Tile::kN * static_cast<int>(sizeof(ColEntry<int>));

  const ConvGemm& p;
  const ClassView& view;
  const scalar_t* a;
  const scalar_t* b;
  const ColEntry<int>* cols;
  int64_t left;  // positions from the thread's first on
  Digits<int> positions[kInUnit], step;
  int unit, row, rows_here;
  Unit from_a[kRows], from_b[kCols];

  __device__ __forceinline__ static int64_t steps(const ConvGemm&, const ClassView& view) {
    return ceil_div(view.depth.size(), kDepth);
  }

  __device__ __forceinline__ PositionElementsLoader(const LoaderArguments<scalar_t>& args,
                                                    unsigned char* shared_table)
      : p(args.p),
        view(args.view),
        b(args.b),
        unit(static_cast<int>(threadIdx.x) % kUnits),
        row(static_cast<int>(threadIdx.x) / kUnits),
        rows_here(args.place.rows_here) {
    cols = tabulate_cols<Tile>(args, shared_table);
    a = args.a + (args.place.row0 + row) * p.a_row;
    const int64_t k = args.first_step * kDepth + unit * kInUnit;
    left = view.depth.size() - k;
#pragma unroll
    for (int i = 0; i < kInUnit; ++i) positions[i] = digits_of<int>(k + i, view.depth);
    step = digits_of<int>(kDepth, view.depth);
  }

  // from: where the unit's elements are, null where there is 0 instead.
  __device__ __forceinline__ static void load(const scalar_t* const (&from)[kInUnit], Unit& value,
                                              unsigned char* to) {
    if constexpr (kInUnit == 1) {
      cp_async_zero_fill<4>(to, from[0], from[0] != nullptr ? 4 : 0);
    } else {
      const bool both = from[0] != nullptr && from[1] == from[0] + 1;
      if (both && reinterpret_cast<uintptr_t>(from[0]) % sizeof(Unit) == 0) {
        value = *reinterpret_cast<const Unit*>(from[0]);
      } else {
        const scalar_t zero = from_acc<scalar_t>(0.0f);
#pragma unroll
        for (int i = 0; i < kInUnit; ++i) value.v[i] = from[i] != nullptr ? *from[i] : zero;
      }
    }
  }

  template <typename Operand>
  __device__ __forceinline__ unsigned char* place(unsigned char* tile, int i) const {
    return tile + Operand::element_offset(row + i * kRowsAtOnce, unit * kInUnit);
  }

  __device__ __forceinline__ void issue(unsigned char* tile_a, unsigned char* tile_b) {
    DepthEntry<int> entries[kInUnit];
#pragma unroll
    for (int j = 0; j < kInUnit; ++j) entries[j] = depth_entry<int>(p, positions[j]);
    const scalar_t* from[kInUnit];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool has_row = row + i * kRowsAtOnce < rows_here;
#pragma unroll
      for (int j = 0; j < kInUnit; ++j) {
        from[j] = has_row && j < left ? a + i * kRowsAtOnce * p.a_row + entries[j].a : nullptr;
      }
      load(from, from_a[i], place<OperandA>(tile_a, i));
    }
#pragma unroll
    for (int i = 0; i < kCols; ++i) {
      const ColEntry<int> col = cols[row + i * kRowsAtOnce];
#pragma unroll
      for (int j = 0; j < kInUnit; ++j) {
        const auto& e = entries[j];
        const bool inside =
            j < left && col.d != kOutside && is_inside(p, e.d + col.d, e.h + col.h, e.w + col.w);
        from[j] = inside ? b + e.b + col.b : nullptr;
      }
      load(from, from_b[i], place<OperandB>(tile_b, i));
    }
#pragma unroll
    for (int j = 0; j < kInUnit; ++j) advance(positions[j], step, view.depth);
    left -= kDepth;
  }

  __device__ __forceinline__ void finish(unsigned char* tile_a, unsigned char* tile_b) const {
    if constexpr (kInUnit == 2) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) *reinterpret_cast<Unit*>(place<OperandA>(tile_a, i)) = from_a[i];
#pragma unroll
      for (int i = 0; i < kCols; ++i) *reinterpret_cast<Unit*>(place<OperandB>(tile_b, i)) = from_b[i];
    }
  }
};

}  // namespace
}  // namespace fastnn::cuda
