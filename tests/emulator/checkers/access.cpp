#include "access.h"

#include <cstdio>
#include <string>

#include "../intrinsics/atomics.h"
#include "../scheduler/gang.h"
#include "profile.h"
#include "races.h"

namespace fastnn::emulator {

constinit thread_local __attribute__((tls_model("initial-exec"))) Probe probe{};

__attribute__((noinline)) void check_kernel_access(uintptr_t address, size_t bytes, Access kind, uintptr_t pc) {
  GangRunner& runner = *probe.runner;
  const Thread& thread = *probe.thread;
  const bool shared = address - probe.arenas_begin < probe.arenas_bytes;
  if (shared) {
    runner.shadow().access(runner, address, bytes, kind, thread.owner, thread.clock, site_of(pc),
                           Proxy::kGeneric);
  } else if (!global_access(runner, address, bytes, kind, thread.clock, site_of(pc), pc)) {
    return;
  }
  if (is_write(kind)) runner.note_progress();
  if (AccessProfile* const profile = runner.profile()) {
    profile->record(thread.block->rank * kMaxWarps + thread.warp_number(), thread.lane(), pc,
                    shared ? (address - probe.arenas_begin) % SharedArena::kStride : address,
                    static_cast<unsigned>(bytes), is_write(kind), shared ? Space::kShared : Space::kGlobal);
  }
}

namespace {

inline void access(void* memory, size_t bytes, Access kind, void* pc) {
  if (probe.thread == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  if (address - probe.stack_begin < probe.stack_bytes) return;  // local memory
  check_kernel_access(address, bytes, kind, reinterpret_cast<uintptr_t>(pc));
}

// A volatile access is what programs had before relaxed atomics: it races with none of either.
inline void volatile_access(void* memory, size_t bytes, bool write, void* pc) {
  if (write) {
    atomic_store(memory, bytes, reinterpret_cast<uintptr_t>(pc));
  } else {
    atomic_load(memory, bytes, reinterpret_cast<uintptr_t>(pc));
  }
}

}  // namespace
}  // namespace fastnn::emulator

#define FASTNN_HOOK extern "C" __attribute__((visibility("hidden")))
#define FASTNN_ACCESS(name, bytes, kind)                                                                  \
  FASTNN_HOOK void __tsan_##name(void* memory) {                                                          \
    fastnn::emulator::access(memory, bytes, fastnn::emulator::Access::kind, __builtin_return_address(0)); \
  }
#define FASTNN_ACCESSES(bytes)                       \
  FASTNN_ACCESS(read##bytes, bytes, kRead)           \
  FASTNN_ACCESS(write##bytes, bytes, kWrite)         \
  FASTNN_ACCESS(unaligned_read##bytes, bytes, kRead) \
  FASTNN_ACCESS(unaligned_write##bytes, bytes, kWrite)
#define FASTNN_VOLATILE_ACCESSES(bytes)                                                   \
  FASTNN_HOOK void __tsan_volatile_read##bytes(void* memory) {                            \
    fastnn::emulator::volatile_access(memory, bytes, false, __builtin_return_address(0)); \
  }                                                                                       \
  FASTNN_HOOK void __tsan_volatile_write##bytes(void* memory) {                           \
    fastnn::emulator::volatile_access(memory, bytes, true, __builtin_return_address(0));  \
  }
FASTNN_ACCESSES(1)
FASTNN_ACCESSES(2)
FASTNN_ACCESSES(4)
FASTNN_ACCESSES(8)
FASTNN_ACCESSES(16)
FASTNN_VOLATILE_ACCESSES(1)
FASTNN_VOLATILE_ACCESSES(2)
FASTNN_VOLATILE_ACCESSES(4)
FASTNN_VOLATILE_ACCESSES(8)
FASTNN_VOLATILE_ACCESSES(16)
FASTNN_HOOK void __tsan_read_range(void* memory, size_t bytes) {
  fastnn::emulator::access(memory, bytes, fastnn::emulator::Access::kRead, __builtin_return_address(0));
}
FASTNN_HOOK void __tsan_write_range(void* memory, size_t bytes) {
  fastnn::emulator::access(memory, bytes, fastnn::emulator::Access::kWrite, __builtin_return_address(0));
}
FASTNN_HOOK void __tsan_init() {}
FASTNN_HOOK void __tsan_func_entry(void*) {}
FASTNN_HOOK void __tsan_func_exit() {}
FASTNN_HOOK void __tsan_vptr_update(void**, void*) {}

// What g++ says of a pointer that is not aligned to what it points to. Unlike the calls above this one comes
// with the place in the source.
namespace {
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation where;
  const TypeDescriptor* type;
  unsigned char log_alignment, check_kind;
};
}  // namespace

FASTNN_HOOK void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, void* memory) {
  using namespace fastnn::emulator;
  if (probe.thread == nullptr) return;
  std::string file = data->where.file;
  file = file.substr(file.rfind('/') + 1);
  char text[256];
  std::snprintf(text, sizeof(text),
                "uses (%s:%u) as %.80s an address that is misaligned: %p is no multiple of %u bytes",
                file.c_str(), data->where.line, data->type->name, memory, 1u << data->log_alignment);
  probe.runner->report(*probe.thread, text);
  probe.runner->stop();
}
