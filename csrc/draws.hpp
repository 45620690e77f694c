#pragma once
#include <cstdint>

namespace cascadia {

/// Uniform random numbers that depend on what they are for, not on when they are drawn: results stay the same in any
/// order of execution. SplitMix64's mixing (Steele et al., OOPSLA 2014) of a seed, a stream and an index.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : seed_(mix(seed + kGolden)) {}
  /// At least 0 and below 1.
  double uniform(std::uint64_t stream, std::uint64_t index) const {
    const std::uint64_t bits = mix(mix(seed_ + kGolden * (stream + 1)) + kGolden * (index + 1));
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }

 private:
  static constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::uint64_t seed_;
};

}  // namespace cascadia
