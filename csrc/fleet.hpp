#pragma once
#include <cstdint>
#include <vector>

#include "cascade.hpp"

namespace cascadia {

/// The replicas of all stations, one after another.
struct Fleet {
  std::vector<Engine> engines;
  std::vector<Dispatcher> dispatchers;    // by station
  std::vector<std::size_t> first;         // engine of each station, and one past the last
  std::vector<std::uint16_t> station_of;  // by engine

  Fleet(const CascadeSpec& spec, bool expires) {
    for (const auto* stations : {&spec.stages, &spec.judge})
      for (const Station& station : *stations) add(station, expires);
    first.push_back(engines.size());
  }

  /// Visits at a station that have never been admitted.
  std::int64_t waiting(std::size_t station) const {
    std::int64_t visits = 0;
    for (std::size_t engine = first[station]; engine < first[station + 1]; ++engine)
      visits += engines[engine].waiting();
    return visits;
  }

 private:
  void add(const Station& station, bool expires) {
    check(station.scheduler);
    std::vector<double> capacity;
    std::vector<Window> windows;
    for (const Station::Kind& kind : station.engines)
      for (int replica = 0; replica < kind.count; ++replica) {
        engines.emplace_back(*kind.costs, station.scheduler, expires, kind.window.opens_s);
        capacity.push_back(kind.capacity_per_s);
        windows.push_back(kind.window);
        station_of.push_back(static_cast<std::uint16_t>(first.size()));
      }
    first.push_back(engines.size() - capacity.size());
    dispatchers.emplace_back(station.dispatch, std::move(capacity), std::move(windows));
  }
};

}  // namespace cascadia
