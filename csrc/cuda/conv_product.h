// Convolutions by pipelined products, on tensor cores by mma.sync or on CUDA cores: whether one is such (a
// function of shape and dtype), and the same three things of each direction as the op itself has.
#pragma once

#include "../ops/conv.h"
#include "conv_variant.h"

namespace fastnn::cuda {

bool takes_product(const ConvForwardParams& p);
bool takes_product(const ConvGradInputParams& p);
bool takes_product(const ConvGradWeightParams& p);

int64_t product_workspace(const ConvForwardParams& p);
int64_t product_workspace(const ConvGradInputParams& p);
int64_t product_workspace(const ConvGradWeightParams& p);

// What p.variant stands for, of a convolution that is one.
ConvWay product_way(const ConvForwardParams& p);
ConvWay product_way(const ConvGradInputParams& p);
ConvWay product_way(const ConvGradWeightParams& p);

Status launch_product(const ConvForwardParams& p, Stream stream);
Status launch_product(const ConvGradInputParams& p, Stream stream);
Status launch_product(const ConvGradWeightParams& p, Stream stream);

}  // namespace fastnn::cuda
