// Elementary functions written so that compilers vectorise loops over them: no branches, no tables, no libm calls.
// Relative error below 1e-10, ample for a latency model; the same operations in the same order on every path.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

// Hot loops are compiled for several instruction sets and picked at load time; contraction is off, so all round alike.
// GCC knows these names since 12, the loader's part is glibc's, and sanitizers run before it.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CASCADIA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CASCADIA_CLONES
#endif

namespace cascadia {

// log2 of a positive normal number.
[[gnu::always_inline]] inline double fast_log2(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  // Move the mantissa to [sqrt(1/2), sqrt(2)) so that the series below converges fast.
  const std::uint64_t shifted = bits - 0x3FE6A09E667F3BCDULL;
  const auto biased = std::bit_cast<double>((shifted >> 52 & 0xFFF) | 0x4330000000000000ULL);  // 2^52 + exponent
  double exponent = biased - 4503599627370496.0;
  exponent = exponent >= 2048.0 ? exponent - 4096.0 : exponent;
  const auto m = std::bit_cast<double>(bits - (shifted & 0xFFF0000000000000ULL));
  const double s = (m - 1.0) / (m + 1.0), t = s * s;
  const double series =
      1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9 + t * (1.0 / 11 + t * (1.0 / 13))))));
  return exponent + 2.8853900817779268 * s * series;
}

// 2^x for |x| <= 1000.
[[gnu::always_inline]] inline double fast_exp2(double x) {
  const double shift = x + 6755399441055744.0;  // 1.5 * 2^52 rounds to the nearest integer
  const auto integer = std::bit_cast<std::uint64_t>(shift);
  const double y = (x - (shift - 6755399441055744.0)) * 0.6931471805599453;
  const double series =
      1.0 +
      y * (1.0 + y * (1.0 / 2 +
                      y * (1.0 / 6 +
                           y * (1.0 / 24 +
                                y * (1.0 / 120 +
                                     y * (1.0 / 720 + y * (1.0 / 5040 + y * (1.0 / 40320 + y * (1.0 / 362880)))))))));
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(series) + (integer << 52));
}

[[gnu::always_inline]] inline double fast_pow(double base, double exponent) {
  return fast_exp2(exponent * fast_log2(base));
}

// By value, unlike std::max, which keeps compilers from vectorising.
[[gnu::always_inline]] inline double larger(double a, double b) { return a > b ? a : b; }
[[gnu::always_inline]] inline double smaller(double a, double b) { return a < b ? a : b; }

// Sums over eight lanes in a fixed order: several times as fast as one after the other, and the same everywhere.
template <class Term>
[[gnu::always_inline]] inline double lane_sum(std::size_t size, const Term& term) {
  double lane[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8)
    for (std::size_t l = 0; l < 8; ++l) lane[l] += term(i + l);
  for (std::size_t l = 0; i + l < size; ++l) lane[l] += term(i + l);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

inline double dot(std::span<const double> a, std::span<const double> b) {
  return lane_sum(a.size(), [&](std::size_t i) { return a[i] * b[i]; });
}

inline double sum(std::span<const double> values) {
  return lane_sum(values.size(), [&](std::size_t i) { return values[i]; });
}

}  // namespace cascadia
