#include <algorithm>

#include "parallel.hpp"
#include "table.hpp"

namespace cascadia {
namespace {

constexpr int kBlock = 64;  // entries of a table that one thread makes after one another

// Every entry by itself: which mixture is best follows from no other entry.
std::vector<Choice> mixed_table(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                                const StageLimits& limits, int gpus, int threads,
                                const std::function<bool()>& interrupted) {
  std::vector<Choice> table(static_cast<std::size_t>(gpus) + 1);
  parallel_for(
      table.size() / kBlock + 1, threads,
      [&](std::size_t block, std::size_t) {
        StageLoad stage;
        Scratch scratch;
        stage.reset(model, share, traffic, limits);
        for (std::size_t f = block * kBlock; f < std::min(table.size(), (block + 1) * kBlock); ++f)
          table[f] = stage.best(static_cast<int>(f), scratch);
      },
      interrupted);
  return table;
}

}  // namespace

std::vector<Choice> latency_table(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                                  const StageLimits& limits, int gpus, int threads,
                                  const std::function<bool()>& interrupted) {
  StageLoad stage;
  stage.reset(model, share, traffic, limits);
  if (traffic.mixed && stage.reached()) return mixed_table(model, share, traffic, limits, gpus, threads, interrupted);
  std::vector<Choice> table(static_cast<std::size_t>(gpus) + 1);
  std::vector<Scratch> scratch(static_cast<std::size_t>(std::max(threads, 1)));
  if (!stage.reached()) {
    for (int f = 0; f <= gpus; ++f) table[static_cast<std::size_t>(f)] = stage.need(0, false, f, scratch[0]);
    return table;
  }
  struct Block {
    int shape, begin, end;
  };
  std::vector<Block> blocks;  // runs of replica counts of one shape
  for (int s = 0; s < static_cast<int>(model.shapes().size()); ++s) {
    if (!model.shapes()[static_cast<std::size_t>(s)].fits()) continue;
    // The load is prepared here once and then only read.
    const int least = stage.kept_replicas(s, scratch[0]), most = stage.most_replicas(s, gpus);
    for (int begin = least; begin <= most; begin += kBlock)
      blocks.push_back({s, begin, std::min(begin + kBlock, most + 1)});
  }
  std::vector<std::vector<double>> latency(blocks.size());
  parallel_for(
      blocks.size(), threads,
      [&](std::size_t b, std::size_t thread) {
        const Block& block = blocks[b];
        const LoadModel& shape = model.shapes()[static_cast<std::size_t>(block.shape)];
        const Load& load = stage.load(block.shape);
        for (int replicas = block.begin; replicas < block.end; ++replicas)
          latency[b].push_back(shape.quantile_s(load, stage.arrivals(replicas), traffic.quantile, scratch[thread]));
      },
      interrupted);
  for (std::size_t b = 0; b < blocks.size(); ++b)
    for (int replicas = blocks[b].begin; replicas < blocks[b].end; ++replicas) {
      const int g = model.shapes()[static_cast<std::size_t>(blocks[b].shape)].gpus() * replicas;
      const double value = latency[b][static_cast<std::size_t>(replicas - blocks[b].begin)];
      Choice& entry = table[static_cast<std::size_t>(g)];
      if (value < entry.latency_s) entry = {blocks[b].shape, replicas, g, value};
    }
  for (std::size_t f = 1; f < table.size(); ++f)  // GPUs may stay idle
    if (!(table[f].latency_s < table[f - 1].latency_s)) table[f] = table[f - 1];
  return table;
}

}  // namespace cascadia
