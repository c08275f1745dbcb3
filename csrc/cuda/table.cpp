// The table of CUDA entry points. C++ alone: it names the kernels' launchers and needs no CUDA header.
#include "../ops/backend.h"

namespace fastnn {
FASTNN_DEFINE_TABLE(FASTNN_NO_OPTIONAL_OP)
}  // namespace fastnn
