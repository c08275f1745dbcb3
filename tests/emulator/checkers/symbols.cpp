// Asks addr2line (GNU binutils, which every g++ on Linux comes with) for lines: reading DWARF is a library's
// work, and a library that does it would be one more thing to install.
#include "symbols.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "places.h"

extern char** environ;

namespace fastnn::emulator {
namespace {

struct Place {
  std::string library;
  uintptr_t offset;
};

std::string base_name(std::string_view path) { return std::string(path.substr(path.rfind('/') + 1)); }

std::string hexadecimal(uintptr_t v) {
  char text[2 * sizeof(v)];
  return {text, std::to_chars(text, text + sizeof(text), v, 16).ptr};
}

// False when the address is in no library.
bool find_library(uintptr_t address, Place& place) {
  Dl_info info{};
  link_map* map = nullptr;
  if (dladdr1(reinterpret_cast<const void*>(address), &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) ==
          0 ||
      map == nullptr) {
    return false;
  }
  place.offset = address - map->l_addr;
  place.library = map->l_name;
  std::error_code error;  // the program itself has no name there
  if (place.library.empty()) place.library = std::filesystem::read_symlink("/proc/self/exe", error).string();
  return true;
}

// What a program prints; empty when it cannot be run.
std::string output_of(const std::vector<std::string>& arguments) {
  std::vector<char*> pointers;
  for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  // What a sanitizer or a profiler has put before this process is not for a helper of it.
  std::vector<char*> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (std::strncmp(*variable, "LD_PRELOAD=", 11) != 0) variables.push_back(*variable);
  }
  variables.push_back(nullptr);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = posix_spawnp(&child, pointers[0], &actions, nullptr, pointers.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  if (error == 0) {
    char part[4096];
    for (;;) {
      const ssize_t count = read(ends[0], part, sizeof(part));
      if (count > 0) text.append(part, static_cast<size_t>(count));
      if (count == 0 || (count < 0 && errno != EINTR)) break;
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
  }
  close(ends[0]);
  return text;
}

// One function of an inline chain.
struct Frame {
  std::string file, line;
  bool operator==(const Frame&) const = default;
};

bool is_of_a_kernel(const Frame& frame) {
  const std::string_view file = frame.file;
  if (file.starts_with("/usr/") || file.find("/include/c++/") != file.npos ||
      file.find("/lib/gcc/") != file.npos) {
    return false;
  }
  return file.find("tests/emulator/") == file.npos || file.find("tests/emulator/selftest/") != file.npos;
}

// The frames come innermost first. Empty when none has a line.
std::string describe(const std::vector<Frame>& frames) {
  if (frames.empty()) return {};
  const auto name = [](const Frame& frame) { return base_name(frame.file) + ":" + frame.line; };
  const auto inner = std::ranges::find_if(frames, is_of_a_kernel);
  if (inner == frames.end()) return name(frames.front());
  const auto caller = std::find_if(inner + 1, frames.end(), [&](const Frame& frame) {
    return is_of_a_kernel(frame) && frame.file != inner->file;
  });
  return caller == frames.end() ? name(*inner) : name(*inner) + " (called from " + name(*caller) + ")";
}

// "/path/of/vec.cuh:31 (discriminator 3)", "??:0" or "/path:?" where it is not known.
bool parse_frame(std::string_view text, Frame& frame) {
  text = text.substr(0, text.find(" ("));
  const size_t colon = text.rfind(':');
  if (colon == text.npos) return false;
  frame.line = text.substr(colon + 1);
  if (frame.line == "?" || frame.line == "0" || frame.line.empty()) return false;
  // Includes leave "folder/../other/file" behind, which would seem to be in both.
  frame.file = std::filesystem::path(text.substr(0, colon)).lexically_normal().string();
  return frame.file != "??";
}

// The descriptions of offsets in one library, in their order; fewer when addr2line fails.
std::vector<std::string> ask(const std::string& library, const std::vector<uintptr_t>& offsets) {
  std::vector<std::string> arguments{"addr2line", "-a", "-i", "-e", library};
  for (const uintptr_t offset : offsets) arguments.push_back("0x" + hexadecimal(offset));
  const std::string text = output_of(arguments);
  std::vector<std::vector<Frame>> chains;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    Frame frame;
    if (line.starts_with("0x")) {
      chains.emplace_back();
    } else if (!chains.empty() && parse_frame(line, frame)) {
      chains.back().push_back(std::move(frame));
    }
  }
  std::vector<std::string> descriptions;
  for (const auto& chain : chains) descriptions.push_back(describe(chain));
  return descriptions;
}

}  // namespace

std::vector<std::string> locate(const std::vector<uintptr_t>& return_addresses) {
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<uintptr_t, std::string>;
  const std::lock_guard lock(mutex);
  struct Question {
    uintptr_t address, offset;
  };
  std::map<std::string, std::vector<Question>> questions;  // by library
  for (const uintptr_t address : return_addresses) {
    if ((address & kPlaceBit) != 0 || !known.try_emplace(address).second) continue;
    // The call lies before the address to which it returns, which may be on the next line or in the next
    // function.
    Place place;
    if (find_library(address - 1, place)) questions[place.library].push_back({address, place.offset});
  }
  for (const auto& [library, of_library] : questions) {
    constexpr size_t kMostAtOnce = 2000;  // far below what a command line may hold
    for (size_t begin = 0; begin < of_library.size(); begin += kMostAtOnce) {
      const size_t end = std::min(begin + kMostAtOnce, of_library.size());
      std::vector<uintptr_t> offsets;
      for (size_t i = begin; i < end; ++i) offsets.push_back(of_library[i].offset);
      std::vector<std::string> answers = ask(library, offsets);
      answers.resize(offsets.size());
      for (size_t i = begin; i < end; ++i) {
        std::string& answer = answers[i - begin];
        if (answer.empty()) answer = base_name(library) + "+0x" + hexadecimal(of_library[i].offset);
        known[of_library[i].address] = std::move(answer);
      }
    }
  }
  std::vector<std::string> result;
  result.reserve(return_addresses.size());
  for (const uintptr_t address : return_addresses) {
    result.push_back((address & kPlaceBit) != 0 ? describe_place(address) : known[address]);
  }
  return result;
}

std::string locate(uintptr_t return_address) { return locate(std::vector{return_address}).front(); }

}  // namespace fastnn::emulator
