// The checked longjmp of _FORTIFY_SOURCE takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE

#include "context.h"

#include <sys/mman.h>
#include <unistd.h>

#if !defined(FASTNN_EMULATOR_BOOST_CONTEXT)
#include <ucontext.h>

#include <memory>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastnn::emulator {
namespace {

// Reserved, not used: pages are taken when first touched.
constexpr size_t kStackBytes = 128 * 1024;
// Tops of the stacks are spread over one page in steps of a cache line; otherwise the frames of a thousand
// threads would share the few cache sets that one page offset has.
constexpr size_t kSpreadStep = 64, kSpreadBytes = 4096;

}  // namespace

Context::~Context() {
  if (mapping_ != nullptr) munmap(mapping_, kStackBytes);
}

bool Context::allocate_stack(size_t index) {
  void* const memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) return false;
  mapping_ = static_cast<char*>(memory);
  // An overflow ends in a fault rather than in the neighbour's frames. Where the system allows no more
  // mappings the stack is used without.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  static_cast<void>(mprotect(mapping_, page, PROT_NONE));
  stack_ = mapping_ + page;
  stack_bytes_ = kStackBytes - page - index * kSpreadStep % kSpreadBytes;
  return true;
}

void Context::reset(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  started_ = false;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
  fake_stack_ = nullptr;
#endif
}

#if defined(__SANITIZE_ADDRESS__)

namespace {
thread_local Context* departing;
}  // namespace

void Context::announce_switch_from(Context& from) {
  departing = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack_, stack_, stack_bytes_);
}

void Context::announce_arrival() {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &bytes);
  if (departing->mapping_ != nullptr) return;
  // An OS thread's own stack, whose bounds are learnt so.
  departing->stack_ = static_cast<char*>(const_cast<void*>(bottom));
  departing->stack_bytes_ = bytes;
}

#else

void Context::announce_switch_from(Context&) {}
void Context::announce_arrival() {}

#endif

#if defined(FASTNN_EMULATOR_BOOST_CONTEXT)

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

namespace {
struct Passage {
  Context* to;
  boost::context::detail::fcontext_t* from_handle;
};
}  // namespace

void Context::enter(transfer_t transfer) {
  const Passage passage = *static_cast<Passage*>(transfer.data);
  *passage.from_handle = transfer.fctx;
  passage.to->announce_arrival();
  passage.to->entry_(passage.to->argument_);
}

void Context::switch_from(Context& from) {
  announce_switch_from(from);
  if (!started_) {
    started_ = true;
    handle_ = make_fcontext(stack_ + stack_bytes_, stack_bytes_, &Context::enter);
  }
  Passage passage{this, &from.handle_};
  const transfer_t back = jump_fcontext(handle_, &passage);
  *static_cast<Passage*>(back.data)->from_handle = back.fctx;
  from.announce_arrival();
}

#else

namespace {
// Given to a new context's entry: makecontext passes int arguments alone.
thread_local Context* starting;
}  // namespace

void Context::enter() {
  Context* const self = starting;
  self->announce_arrival();
  self->entry_(self->argument_);
}

void Context::start() {
  started_ = true;
  starting = this;
  // Not on the stack: this frame is never returned from, and AddressSanitizer would keep its red zones. Nor in
  // thread-local storage itself, of which a library loaded late finds little left.
  thread_local const auto context = std::make_unique<ucontext_t>();
  getcontext(context.get());
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = stack_bytes_;
  context->uc_link = nullptr;
  makecontext(context.get(), &Context::enter, 0);
  setcontext(context.get());
  __builtin_unreachable();  // setcontext fails for an invalid context alone
}

void Context::switch_from(Context& from) {
  announce_switch_from(from);
  if (_setjmp(from.registers_) != 0) {
    from.announce_arrival();
    return;
  }
  if (started_) _longjmp(registers_, 1);
  start();
}

#endif

}  // namespace fastnn::emulator
