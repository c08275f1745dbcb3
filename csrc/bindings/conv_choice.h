// Which of a backend's ways computes a convolution, by measuring where torch.backends.cudnn.benchmark asks for
// it.
#pragma once

#include <string>

#include "backend.h"

namespace fastnn::bindings {

// The variant to set in the parameters. With torch.backends.cudnn.benchmark the ways that the backend lists are
// timed once for each convolution (direction, type, sizes, strides, alignment) and device, with the tensors of
// this call, whose output is overwritten; else, and while a CUDA graph is captured, it is 0, or what was found
// before. Under torch.backends.cudnn.deterministic and torch.use_deterministic_algorithms only ways that give
// the bits of the backend's own choice take part.
int32_t chosen_variant(BackendCall& call, ConvForwardParams& p);
int32_t chosen_variant(BackendCall& call, ConvGradInputParams& p);
int32_t chosen_variant(BackendCall& call, ConvGradWeightParams& p);

// Where choices are kept between processes, one file a device; empty: nowhere. Forgets those in memory.
void set_conv_choices_directory(const std::string& path);

}  // namespace fastnn::bindings
