// A search as Python holds it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings_arrays.hpp"
#include "exact.hpp"

namespace cascadia {

using Routings = py::array_t<std::int64_t, py::array::c_style>;

Minimise minimise_of(const std::string& name);

// Candidate engines of every model on one workload's length cells; searches share them.
struct BoundModels {
  std::vector<std::shared_ptr<const StageModel>> models;
  std::vector<std::vector<int>> pools;  // of each engine

  std::size_t checked(std::size_t model) const {
    require(model < models.size(),
            "Model " + std::to_string(model) + " is not one of the " + std::to_string(models.size()) + " models.");
    return model;
  }
};

// What the requests of a lazily made share do: level they escalate at, cell of the last station, weight.
struct BoundRequests {
  Indexes level, cell;
  Floats weight;
};

// The search views the grid's arrays, so it is kept together with them.
class BoundSearch {
 public:
  BoundSearch(const BoundModels& models, const std::vector<std::size_t>& stations,
              const std::vector<std::size_t>& depth, std::vector<Floats> share, Floats quality,
              const std::vector<std::size_t>& levels, Indexes routings, const Traffic& traffic,
              const std::vector<StageLimits>& limits, std::optional<BoundRequests> requests);

  CascadeSearch& operator*() const { return *search_; }
  CascadeSearch* operator->() const { return search_.get(); }

  std::size_t checked_station(std::size_t station) const;
  std::size_t checked_routing(std::size_t routing) const;
  void check_choice(std::size_t station, const Choice& choice) const;
  void check_candidates(const Routings& candidates) const;

 private:
  void check_shares(const RoutingGrid& grid, const std::vector<SearchStation>& stations) const;
  void check_requests(const RoutingGrid& grid, std::size_t cells) const;
  void check_routings(const std::vector<std::size_t>& levels) const;

  std::vector<Floats> share_;
  Floats quality_;
  Indexes routings_;
  std::optional<BoundRequests> requests_;
  std::unique_ptr<CascadeSearch> search_;
};

}  // namespace cascadia
