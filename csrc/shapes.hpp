#pragma once

#include <string>
#include <vector>

#include "hardware.hpp"
#include "model.hpp"

namespace cascadia {

/// Whether engines of `gpus` GPUs can be placed without fragmentation: whole nodes plus at most one piece, a piece
/// being a power of two that divides the node.
bool packs(int gpus, int gpus_per_node);

/// The rule that keeps engines from running in this shape, or nothing.
std::string why_impossible(const Architecture& a, Shape shape, int gpus_per_node);

/// Whether a fleet of engines in this shape can be placed: tp inside a node, and GPUs that pack.
bool allowed(const Architecture& a, Shape shape, int gpus_per_node);

/// All shapes of at most `gpus_total` GPUs that are allowed and hold the model with a useful KV cache, ordered by
/// GPUs, then by tp.
std::vector<Shape> valid_shapes(const Architecture& a, const Precision& p, const Gpu& gpu, int gpus_total,
                                const EngineLimits& limits);

}  // namespace cascadia
