// The table of CPU entry points, compiled once per instruction set like the kernels that it names.
#include "../ops/backend.h"

namespace fastnn {
FASTNN_DEFINE_TABLE(FASTNN_FOR_EACH_OPTIONAL_OP)
}  // namespace fastnn
