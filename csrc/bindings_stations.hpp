// Stations as Python makes them; they keep what they refer to.
#pragma once
#include <memory>
#include <vector>

#include "bindings_arrays.hpp"
#include "cascade.hpp"

namespace cascadia {

struct HeldStation {
  Station station;
  std::vector<std::shared_ptr<StepCosts>> kinds;
};

inline void require_lengths(std::span<const std::int32_t> tokens, const std::string& name) {
  require_each(
      tokens, [](std::int32_t length) { return length >= 1 && length <= 1'000'000'000; },
      [&](std::size_t i, std::int32_t length) {
        return name + " is " + std::to_string(length) + " at position " + std::to_string(i) +
               ": give 1 to 1,000,000,000 tokens.";
      });
}

}  // namespace cascadia
