// What a search is made of, checked where it comes from Python.
#include "bindings_search.hpp"

namespace cascadia {
namespace {

std::string text(std::size_t number) { return std::to_string(number); }

void check_traffic(const Traffic& traffic) {
  require(traffic.rate_per_s > 0 && traffic.rate_per_s < kUnreachable,
          "The rate is " + std::to_string(traffic.rate_per_s) + " requests per second: give a finite number above 0.");
  require(traffic.max_utilization > 0 && traffic.max_utilization < 1,
          "max_utilization is " + std::to_string(traffic.max_utilization) + ": give a number between 0 and 1.");
  require_quantile(traffic.scv, traffic.quantile);
}

void check_depth(const std::vector<std::size_t>& depth, std::size_t stations, std::size_t thresholds) {
  require(stations > 0 && depth.size() == stations,
          "A search of " + text(stations) + " stations needs as many depths, and at least one station.");
  for (std::size_t i = 0; i < stations; ++i)
    require(depth[i] <= thresholds && (i == 0 || depth[i - 1] <= depth[i]),
            "Depths ascend from station to station, up to the " + text(thresholds) + " thresholds.");
  require(depth.back() == thresholds, "The last station's depth is " + text(depth.back()) + " and there are " +
                                          text(thresholds) + " thresholds: all of them come before it.");
}

}  // namespace

BoundSearch::BoundSearch(const BoundModels& models, const std::vector<std::size_t>& stations,
                         const std::vector<std::size_t>& depth, std::vector<Floats> share, Floats quality,
                         const std::vector<std::size_t>& levels, Indexes routings, const Traffic& traffic,
                         const std::vector<StageLimits>& limits, std::optional<BoundRequests> requests)
    : share_(std::move(share)),
      quality_(std::move(quality)),
      routings_(std::move(routings)),
      requests_(std::move(requests)) {
  check_traffic(traffic);
  check_depth(depth, stations.size(), levels.size());
  require(share_.size() == stations.size(), "A search needs a share for each of its " + text(stations.size()) +
                                                " stations, not " + text(share_.size()) + ".");
  require(limits.empty() || limits.size() == stations.size(),
          "Give limits for each of the " + text(stations.size()) + " stations, or none.");
  for (const std::size_t count : levels) require(count > 0, "A threshold needs at least one level.");
  std::vector<SearchStation> parts;
  for (std::size_t i = 0; i < stations.size(); ++i) {
    const std::size_t model = models.checked(stations[i]);
    parts.push_back({models.models[model], models.pools[model], limits.empty() ? StageLimits{} : limits[i]});
  }
  RoutingGrid grid{levels, depth, {}, view(quality_), view(routings_), {}};
  for (const Floats& one : share_) grid.share.push_back(view(one));
  check_shares(grid, parts);
  require(quality_.size() == static_cast<py::ssize_t>(grid.rows(grid.last())),
          "quality must have one entry per threshold combination.");
  check_routings(levels);
  if (grid.lazy()) {
    check_requests(grid, parts.back().model->cells());
    grid.requests = {view(requests_->level), view(requests_->cell), view(requests_->weight)};
  }
  const py::gil_scoped_release release;
  search_ = std::make_unique<CascadeSearch>(std::move(parts), std::move(grid), traffic);
}

void BoundSearch::check_shares(const RoutingGrid& grid, const std::vector<SearchStation>& stations) const {
  for (std::size_t i = 0; i < stations.size(); ++i) {
    const std::size_t cells = stations[i].model->cells();
    const bool lazy = i == grid.last() && i > 0 && grid.lazy() && requests_;
    require(lazy || grid.share[i].size() == grid.rows(i) * cells,
            "share[" + text(i) + "] must have shape (" + text(grid.rows(i)) + ", " + text(cells) + ").");
    require_share(grid.share[i], "share[" + text(i) + "]");
  }
}

void BoundSearch::check_requests(const RoutingGrid& grid, std::size_t cells) const {
  const auto level = view(requests_->level), cell = view(requests_->cell);
  const auto weight = view(requests_->weight);
  require(!weight.empty() && cell.size() == weight.size() && level.size() == weight.size() * grid.thresholds(),
          "requests are levels of shape (n, thresholds), cells of shape (n,) and weights of shape (n,), n > 0.");
  for (std::size_t i = 0; i < level.size(); ++i)
    require(level[i] >= 0 && static_cast<std::size_t>(level[i]) < grid.levels[i % grid.thresholds()],
            "requests have a level index that its threshold does not have.");
  for (const std::int32_t k : cell)
    require(k >= 0 && static_cast<std::size_t>(k) < cells, "requests have a cell that the last station does not have.");
  double total = 0;
  for (const double w : weight) {
    require(w >= 0 && w < 1e300, "requests have a weight that is negative or not finite.");
    total += w;
  }
  require(total > 0, "All weights of the requests are 0.");
}

void BoundSearch::check_routings(const std::vector<std::size_t>& levels) const {
  const auto flat = view(routings_);
  if (levels.empty()) return;
  require(!flat.empty() && flat.size() % levels.size() == 0, "routings must have shape (R, thresholds), R > 0.");
  for (std::size_t i = 0, j = 0; i < flat.size(); ++i, j = j + 1 == levels.size() ? 0 : j + 1)
    if (flat[i] < 0 || static_cast<std::size_t>(flat[i]) >= levels[j])
      throw std::invalid_argument("routings has a level index that its threshold does not have.");
}

std::size_t BoundSearch::checked_station(std::size_t station) const {
  require(station < share_.size(),
          "Station " + text(station) + " is not one of the " + text(share_.size()) + " stations.");
  return station;
}

std::size_t BoundSearch::checked_routing(std::size_t routing) const {
  require(routing < search_->grid().count(),
          "Routing " + text(routing) + " is not one of the " + text(search_->grid().count()) + " distinct routings.");
  return routing;
}

// Index -1 stands for no replicas.
void BoundSearch::check_choice(std::size_t station, const Choice& choice) const {
  const int shapes = static_cast<int>(search_->stage(checked_station(station)).shapes().size());
  const auto sound = [&](int shape, int replicas) {
    return shape >= -1 && shape < shapes && replicas >= (shape < 0 ? 0 : 1) && replicas <= 1'000'000;
  };
  require(sound(choice.shape, choice.replicas) && sound(choice.fill_shape, choice.fill_replicas),
          "Shape " + std::to_string(choice.shape) + " with " + std::to_string(choice.replicas) +
              " replicas is not a deployment of station " + text(station) + ", which has " + std::to_string(shapes) +
              " shapes.");
}

void BoundSearch::check_candidates(const Routings& candidates) const {
  const auto count = static_cast<std::int64_t>(search_->grid().count());
  for (const std::int64_t routing : view(candidates))
    if (routing < 0 || routing >= count)
      throw std::invalid_argument("Candidate " + std::to_string(routing) + " is not one of the " +
                                  std::to_string(count) + " distinct routings.");
}

}  // namespace cascadia
