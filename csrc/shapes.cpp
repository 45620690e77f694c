#include "shapes.hpp"

#include <algorithm>
#include <bit>

#include "memory.hpp"

namespace cascadia {

bool packs(int gpus, int gpus_per_node) {
  const int piece = gpus % gpus_per_node;
  return piece == 0 || (std::has_single_bit(static_cast<unsigned>(piece)) && gpus_per_node % piece == 0);
}

std::string why_impossible(const Architecture& a, Shape shape, int gpus_per_node) {
  const auto number = [](int value) { return std::to_string(value); };
  const int group = shape.group();
  if (std::min({shape.tp, shape.pp, shape.attention_dp, shape.ep}) < 1) return "every degree must be at least 1";
  if (a.heads % shape.tp != 0) return "tp must divide the " + number(a.heads) + " attention heads";
  if (shape.pp > a.layers) return "pp must be at most the " + number(a.layers) + " layers";
  if (shape.ep > 1 && a.experts == 0) return "ep must be 1 for a model without experts";
  if (group % shape.ep != 0) return "ep must divide the " + number(group) + " GPUs of tp x attention_dp";
  if (group > gpus_per_node && group % gpus_per_node != 0) {
    return "tp x attention_dp must lie in a node of " + number(gpus_per_node) + " GPUs or fill whole nodes";
  }
  return "";
}

bool allowed(const Architecture& a, Shape shape, int gpus_per_node) {
  return why_impossible(a, shape, gpus_per_node).empty() && gpus_per_node % shape.tp == 0 &&
         packs(shape.gpus(), gpus_per_node);
}

std::vector<Shape> valid_shapes(const Architecture& a, const Precision& p, const Gpu& gpu, int gpus_total,
                                const EngineLimits& limits) {
  std::vector<Shape> shapes;
  for (int tp = 1; tp <= std::min(gpus_total, limits.gpus_per_node); ++tp) {
    for (int pp = 1; pp <= std::min(a.layers, gpus_total / tp); ++pp) {
      const Shape shape{tp, pp};
      if (allowed(a, shape, limits.gpus_per_node) && holds_model(a, p, gpu, shape, limits)) shapes.push_back(shape);
    }
  }
  std::sort(shapes.begin(), shapes.end(), [](Shape left, Shape right) {
    return left.gpus() != right.gpus() ? left.gpus() < right.gpus() : left.tp < right.tp;
  });
  return shapes;
}

}  // namespace cascadia
