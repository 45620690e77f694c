#include "loads.hpp"

#include <algorithm>
#include <cmath>

namespace cascadia {
namespace {

constexpr std::size_t kKept = 512;  // loads per station; a cascade of three models has 102 of its second

}  // namespace

double Setting::least_gpus(std::size_t station, double reach, double gpu_s) const {
  const StageModel& model = *stations[station].model;
  const StageLimits& limits = stations[station].limits;
  const int replicas = limits.fewest(reach > 0, traffic);
  if (replicas == 0) return 0;
  if (model.least_gpus() == 0 || replicas > limits.most_replicas) return kUnreachable;
  const double kept = static_cast<double>(replicas) * model.least_gpus();
  // A bound of little work may be negative. Whole GPUs: far less than one is rounding.
  return reach > 0 ? std::max(kept, std::ceil(gpu_s * traffic.rate_per_s / traffic.max_utilization - 1e-6)) : kept;
}

Loads::Loads(const Setting& setting) : setting_(&setting), kept_(setting.grid.last()) {
  for (std::size_t i = 0; i < kept_.size(); ++i) kept_[i].by_prefix.resize(setting.grid.rows(i));
  if (setting.grid.lazy()) lazy_.emplace(setting.grid, setting.stations.back().model->cells());
}

std::span<const double> Loads::row(std::size_t station, std::size_t prefix) {
  if (lazy_ && station == setting_->grid.last()) return lazy_->row(prefix);
  const std::size_t cells = setting_->stations[station].model->cells();
  return {setting_->grid.share[station].data() + prefix * cells, cells};
}

StageLoad& Loads::at(std::size_t routing, std::size_t station) {
  const std::size_t prefix = setting_->grid.prefix(routing, station);
  const auto reset = [&](StageLoad& load, std::span<const double> shares) {
    const SearchStation& about = setting_->stations[station];
    load.reset(*about.model, shares, setting_->traffic, about.limits);
  };
  if (station == setting_->grid.last()) {
    if (prefix == last_prefix_) return last_;
    last_prefix_ = prefix;
    const auto shares = share(routing, station);
    last_share_.assign(shares.begin(), shares.end());  // rows made lazily do not stay
    reset(last_, last_share_);
    return last_;
  }
  Kept& kept = kept_[station];
  auto& load = kept.by_prefix[prefix];
  if (load) return *load;
  load = std::make_unique<StageLoad>();
  reset(*load, share(routing, station));
  if (!kept.order.empty()) load->start_near(*kept.by_prefix[kept.order.back()]);
  kept.order.push_back(prefix);
  if (kept.order.size() > kKept) {
    kept.by_prefix[kept.order.front()].reset();
    kept.order.pop_front();
  }
  return *load;
}

std::vector<StageLoad*> Loads::of(std::size_t routing) {
  std::vector<StageLoad*> all;
  for (std::size_t i = 0; i < setting_->stations.size(); ++i) all.push_back(&at(routing, i));
  return all;
}

}  // namespace cascadia
