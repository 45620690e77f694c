// One station under one routing, as the search over paths sees it: the ways to run it, and the samples of each.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "paths.hpp"
#include "table.hpp"

namespace cascadia {

// What holds for a station under every routing.
struct PathStationModel {
  const StageModel* model = nullptr;
  StageLimits limits;
  std::vector<int> pool;             // by option
  std::vector<StationSamples> idle;  // by option: no sample is below these, whatever the load
  StationSamples least_idle;         // of all options
  std::vector<int> order;            // options that fit, the one that is fastest when idle first

  PathStationModel(const StageModel& model, const StageLimits& limits, std::vector<int> pool);
};

// May be asked by several threads at once.
class PathStation {
 public:
  // `least` to `most` replicas of an option; option -1: nothing runs.
  struct Way {
    int option = -1, gpus = 0, pool = 0, least = 0, most = 0;
  };

  PathStation(const PathStationModel& model, std::vector<double> share, const Traffic& traffic);
  PathStation(const PathStation&) = delete;
  PathStation& operator=(const PathStation&) = delete;

  bool reached() const { return load_.reached(); }
  // The fewest replicas of a way are a lower bound from the work alone until this has been called.
  void settle();
  std::span<const Way> ways() const { return ways_; }
  const StageLimits& limits() const { return model_.limits; }
  // Samples with so many replicas; p95 +inf where they cannot carry the load.
  const StationSamples& samples(std::size_t way, int replicas);
  // The same of any deployment, whatever the station's limits.
  const StationSamples& deployed(const Choice& choice);
  // No deployment on so many GPUs of each pool has a sample or a p95 below these, with `fewer` replicas out of service;
  // null: there is none.
  const StationSamples* relaxed(std::span<const int> gpus, int fewer);

 private:
  StationSamples computed(int option, int replicas);
  const StationSamples& known(int option, int replicas);

  const PathStationModel& model_;
  const Traffic& traffic_;
  std::vector<double> share_;
  StageLoad load_;
  Scratch scratch_;
  std::vector<Way> ways_;
  std::vector<std::map<int, StationSamples>> samples_;  // [1 + option], by replicas
  std::map<std::vector<int>, StationSamples> relaxed_;  // by replicas of each way
  bool settled_ = false;
  std::mutex lock_;
};

}  // namespace cascadia
