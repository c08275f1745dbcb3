#include "conv_choice.h"

#include <ATen/Context.h>
#include <c10/core/Event.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <mutex>
#include <system_error>
#include <unordered_map>
#include <vector>

#if defined(FASTNN_WITH_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastnn::bindings {

namespace {

// ---- what is known ------------------------------------------------------------------------------------------

// What was found for one device. Its file has a line for each way of each convolution: key, name of the way and
// microseconds, apart by tabs; of one key the last is the fastest. Lines are only ever added, so that processes
// may share it, and one that cannot be read is passed over.
struct DeviceChoices {
  std::unordered_map<std::string, int32_t> numbers;    // of this process, by key
  std::unordered_map<std::string, std::string> names;  // of the file
  std::string path;
};

std::mutex choices_mutex;
std::unordered_map<int, DeviceChoices> choices_by_device;
std::string directory;

std::string device_name(const BackendCall& call) {
#if defined(FASTNN_WITH_CUDA)
  if (call.device().is_cuda()) {
    cudaDeviceProp d;
    C10_CUDA_CHECK(cudaGetDeviceProperties(&d, call.device().index()));
    return c10::str(d.name, "-sm_", d.major, d.minor, "-cuda-", CUDART_VERSION);
  }
#endif
  (void)call;
  return "emulated";
}

void read_choices(DeviceChoices& choices) {
  std::ifstream file(choices.path);
  for (std::string line; std::getline(file, line);) {
    const size_t key = line.find('\t');
    const size_t name = key == std::string::npos ? key : line.find('\t', key + 1);
    if (name == std::string::npos) continue;
    choices.names[line.substr(0, key)] = line.substr(key + 1, name - key - 1);
  }
}

// Under the mutex.
DeviceChoices& choices_of(const BackendCall& call) {
  const int device = call.device().is_cpu() ? -1 : call.device().index();
  const auto [found, is_new] = choices_by_device.try_emplace(device);
  DeviceChoices& choices = found->second;
  if (is_new && !directory.empty()) {
    std::string name = device_name(call);
    const auto is_odd = [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-' && c != '_'; };
    std::replace_if(name.begin(), name.end(), is_odd, '_');
    choices.path = directory + "/conv-" + name + ".tsv";
    read_choices(choices);
  }
  return choices;
}

struct Timed {
  ConvVariant variant;
  double microseconds = std::numeric_limits<double>::infinity();
};

// The fastest last.
void write_times(const DeviceChoices& choices, const std::string& key, const std::vector<Timed>& ways) {
  if (choices.path.empty()) return;
  std::string lines;
  for (const Timed& way : ways) {
    if (std::isinf(way.microseconds)) continue;
    lines += key + '\t' + way.variant.name + '\t' + std::to_string(way.microseconds) + '\n';
  }
  std::error_code ignored;  // a directory that cannot be made is a file that cannot be written
  std::filesystem::create_directories(directory, ignored);
  std::ofstream file(choices.path, std::ios::app);
  file << lines << std::flush;
  if (!file) {
    TORCH_WARN_ONCE("fastnn: cannot write ", choices.path,
                    "; the next process will measure convolutions again. Set FASTNN_CACHE_DIR to a directory "
                    "that can be written, or to nothing.");
  }
}

// ---- keys ---------------------------------------------------------------------------------------------------

// Of pointers the alignment counts: vectors of 16 bytes are the longest that kernels ask for.
template <typename Params>
std::string key_of(const char* direction, const Params& p, std::initializer_list<const ConvStrides*> strides,
                   std::initializer_list<const void*> pointers) {
  const ConvGeometry& g = p.geometry;
  std::string key = direction;
  const auto add = [&](int64_t value) { (key += ' ') += std::to_string(value); };
  const auto add_all = [&](const auto& values) {
    for (const int64_t v : values) add(v);
  };
  add_all(std::initializer_list<int64_t>{static_cast<int64_t>(p.dtype), p.allow_tf32, g.N, g.C, g.K, g.groups});
  for (const auto* sizes : {&g.in, &g.out, &g.kernel, &g.stride, &g.pad, &g.dilation}) add_all(*sizes);
  for (const ConvStrides* of_tensor : strides) add_all(*of_tensor);
  int64_t aligned = 0;
  for (const void* pointer : pointers)
    aligned = aligned << 1 | (reinterpret_cast<uintptr_t>(pointer) % 16 == 0);
  add(aligned);
  return key;
}

std::string key_of(const ConvForwardParams& p) {
  return key_of("forward", p, {&p.x_strides, &p.w_strides, &p.y_strides}, {p.x, p.w, p.y});
}
std::string key_of(const ConvGradInputParams& p) {
  return key_of("grad_input", p, {&p.grad_y_strides, &p.w_strides, &p.grad_x_strides},
                {p.grad_y, p.w, p.grad_x});
}
std::string key_of(const ConvGradWeightParams& p) {
  return key_of("grad_weight", p, {&p.x_strides, &p.grad_y_strides, &p.grad_w_strides},
                {p.x, p.grad_y, p.grad_w});
}

// ---- measuring ----------------------------------------------------------------------------------------------

bool is_captured(const BackendCall& call) {
#if defined(FASTNN_WITH_CUDA)
  if (call.device().is_cuda())
    return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
#endif
  (void)call;
  return false;
}

// Microseconds that run() takes on the device. The emulator is done when it returns.
template <typename F>
double microseconds(const BackendCall& call, F&& run) {
#if defined(FASTNN_WITH_CUDA)
  if (call.device().is_cuda()) {
    const c10::Stream stream = c10::cuda::getCurrentCUDAStream(call.device().index()).unwrap();
    c10::Event begin(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
    c10::Event end(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
    begin.record(stream);
    run();
    end.record(stream);
    end.synchronize();
    return 1000 * begin.elapsedTime(end);
  }
#endif
  (void)call;
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

template <typename Params>
struct Entries {
  Status (*Backend::*run)(const Params&, Stream);
  int64_t (*Backend::*workspace)(const Params&);
  const Params* ConvVariantsParams::* listed;
};
constexpr Entries<ConvForwardParams> entries(const ConvForwardParams&) {
  return {&Backend::conv_forward, &Backend::conv_forward_workspace, &ConvVariantsParams::forward};
}
constexpr Entries<ConvGradInputParams> entries(const ConvGradInputParams&) {
  return {&Backend::conv_grad_input, &Backend::conv_grad_input_workspace, &ConvVariantsParams::grad_input};
}
constexpr Entries<ConvGradWeightParams> entries(const ConvGradWeightParams&) {
  return {&Backend::conv_grad_weight, &Backend::conv_grad_weight_workspace, &ConvVariantsParams::grad_weight};
}

// Rounds in which each way runs once, after a first run that loads its code. The least time counts, since what
// disturbs a time lengthens it.
constexpr int kRounds = 3;

// Times the ways and puts the slowest first, the fastest last.
template <typename Params>
void measure(BackendCall& call, Params& p, std::vector<Timed>& ways) {
  for (int round = 0; round <= kRounds; ++round) {
    for (Timed& way : ways) {
      p.variant = way.variant.number;
      try {
        const double time = microseconds(call, [&] { call(entries(p).run, entries(p).workspace, p); });
        if (round > 0) way.microseconds = std::min(way.microseconds, time);
      } catch (const c10::OutOfMemoryError&) {
        if (p.variant == 0) throw;  // what would be done without measuring
      }
    }
  }
  std::stable_sort(ways.begin(), ways.end(),
                   [](const Timed& a, const Timed& b) { return a.microseconds > b.microseconds; });
}

template <typename Params>
int32_t choose(BackendCall& call, Params& p) {
  const at::Context& context = at::globalContext();
  if (!context.benchmarkCuDNN() || !call.runs_cuda_kernels()) return 0;
  const bool same_bits = context.deterministicCuDNN() || context.deterministicAlgorithms();
  const std::string key = key_of(p) + (same_bits ? " same bits" : "");
  const std::lock_guard<std::mutex> lock(choices_mutex);
  DeviceChoices& choices = choices_of(call);
  if (const auto known = choices.numbers.find(key); known != choices.numbers.end()) return known->second;

  std::vector<ConvVariant> variants(kMaxConvVariants);
  int count = 0;
  ConvVariantsParams listed;
  listed.*entries(p).listed = &p;
  listed.variants = variants.data();
  listed.count = &count;
  call(&Backend::conv_variants, listed);
  variants.resize(count);
  if (same_bits) std::erase_if(variants, [](const ConvVariant& v) { return !v.same_bits; });
  if (variants.size() < 2) return choices.numbers[key] = 0;
  if (const auto name = choices.names.find(key); name != choices.names.end()) {
    const auto kept = std::find_if(variants.begin(), variants.end(),
                                   [&](const ConvVariant& v) { return name->second == v.name; });
    if (kept != variants.end()) return choices.numbers[key] = kept->number;
  }
  if (is_captured(call)) return 0;
  std::vector<Timed> ways;
  for (const ConvVariant& variant : variants) ways.push_back({variant});
  measure(call, p, ways);
  write_times(choices, key, ways);
  return choices.numbers[key] = ways.back().variant.number;
}

}  // namespace

int32_t chosen_variant(BackendCall& call, ConvForwardParams& p) { return choose(call, p); }
int32_t chosen_variant(BackendCall& call, ConvGradInputParams& p) { return choose(call, p); }
int32_t chosen_variant(BackendCall& call, ConvGradWeightParams& p) { return choose(call, p); }

void set_conv_choices_directory(const std::string& path) {
  const std::lock_guard<std::mutex> lock(choices_mutex);
  directory = path;
  choices_by_device.clear();
}

}  // namespace fastnn::bindings
