// The Python module fastnn._C.
#include "../cpu/capability.h"
#include "backend.h"
#include "python.h"

namespace py = pybind11;
using namespace fastnn::bindings;

PYBIND11_MODULE(_C, m) {
  export_activation(m);
  export_conv(m);
  export_conv_transpose(m);
  export_locally_connected(m);
  export_max_pool(m);
  export_maxout(m);
  export_average_pool(m);
  export_pool_switches(m);
  export_batch_norm(m);
  export_batch_norm_act(m);
  export_group_norm(m);
  export_local_response_norm(m);
  export_lstm_cell(m);

  m.def("cpu_capability", &fastnn::cpu::capability, "Instruction set of the CPU kernels in use.");
  m.def("compiled_cpu_capabilities", &fastnn::cpu::compiled_capabilities,
        "Instruction sets compiled in, best first, separated by spaces.");
  m.def("built_with_cuda", &built_with_cuda, "Whether CUDA kernels are linked in.");
  m.def("load_emulator", &load_emulator, py::arg("path"), "Opens the library of emulated CUDA kernels.");
  m.def("set_emulated", &set_emulated, py::arg("on"),
        "Sends CPU tensors to the emulated CUDA kernels (or back); returns what was set before.");
}
