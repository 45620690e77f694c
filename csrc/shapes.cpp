#include "shapes.hpp"

#include <algorithm>
#include <bit>

#include "memory.hpp"

namespace cascadia {

bool packs(int gpus, int gpus_per_node) {
  const int piece = gpus % gpus_per_node;
  return piece == 0 || (std::has_single_bit(static_cast<unsigned>(piece)) && gpus_per_node % piece == 0);
}

bool allowed(const Architecture& a, Shape shape, int gpus_per_node) {
  const auto divides = [](int part, int whole) { return whole % part == 0; };
  const int group = shape.group();
  return divides(shape.tp, a.heads) && (divides(group, gpus_per_node) || divides(gpus_per_node, group)) &&
         divides(shape.ep, group) && (shape.ep == 1 || (a.experts > 0 && divides(shape.ep, a.experts))) &&
         shape.pp <= a.layers && packs(shape.gpus(), gpus_per_node);
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
