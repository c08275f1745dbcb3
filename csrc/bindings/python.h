// Argument types of the pybind11 functions, and what each op's file adds to the module.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>
#include <variant>

namespace fastnn::bindings {

// An int, or a sequence of ints, as torch takes them for sizes: `3` and `[3]` are the same list of one value.
struct IntList : c10::SmallVector<int64_t, 3> {
  using c10::SmallVector<int64_t, 3>::SmallVector;
};

void export_activation(pybind11::module_& m);
void export_conv(pybind11::module_& m);
void export_conv_transpose(pybind11::module_& m);
void export_locally_connected(pybind11::module_& m);
void export_maxout(pybind11::module_& m);
void export_max_pool(pybind11::module_& m);
void export_average_pool(pybind11::module_& m);
void export_pool_switches(pybind11::module_& m);
void export_batch_norm(pybind11::module_& m);
void export_batch_norm_act(pybind11::module_& m);
void export_group_norm(pybind11::module_& m);
void export_local_response_norm(pybind11::module_& m);
void export_lstm_cell(pybind11::module_& m);

}  // namespace fastnn::bindings

namespace pybind11::detail {

template <>
struct type_caster<fastnn::bindings::IntList> {
  PYBIND11_TYPE_CASTER(fastnn::bindings::IntList, const_name("Union[int, Sequence[int]]"));

  bool load(handle source, bool) {
    value.clear();
    if (PyTuple_Check(source.ptr()) || PyList_Check(source.ptr())) {
      const Py_ssize_t size = PySequence_Fast_GET_SIZE(source.ptr());
      for (Py_ssize_t i = 0; i < size; ++i) {
        if (!append(PySequence_Fast_GET_ITEM(source.ptr(), i))) return false;
      }
      return true;
    }
    return append(source.ptr());
  }

  static handle cast(const fastnn::bindings::IntList& list, return_value_policy, handle) {
    tuple result(list.size());
    for (size_t i = 0; i < list.size(); ++i) result[i] = int_(list[i]);
    return result.release();
  }

 private:
  // Takes ints and what converts to one exactly (numpy's integers); refuses floats and bools, as torch does.
  bool append(PyObject* item) {
    if (PyBool_Check(item) || !PyIndex_Check(item)) return false;
    const object index = reinterpret_steal<object>(PyNumber_Index(item));
    const int64_t number = index ? PyLong_AsLongLong(index.ptr()) : -1;
    if (PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    value.push_back(number);
    return true;
  }
};

}  // namespace pybind11::detail
