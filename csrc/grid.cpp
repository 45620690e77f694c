#include "grid.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace cascadia {
namespace {

// Shares are rounded to whole multiples of it. Their sums are then exact, so that a row has the same bits in whatever
// order it was added up.
constexpr double kUnit = 0x1p-50;
constexpr std::size_t kNone = static_cast<std::size_t>(-1);

std::size_t product(std::span<const std::size_t> factors) {
  return std::accumulate(factors.begin(), factors.end(), std::size_t{1}, std::multiplies<>());
}

}  // namespace

std::size_t RoutingGrid::rows(std::size_t station) const { return product({levels.data(), depth[station]}); }

std::size_t RoutingGrid::row(std::size_t routing, std::size_t first) const {
  const std::int32_t* level = routings.data() + routing * thresholds();
  std::size_t index = 0;
  for (std::size_t j = 0; j < first; ++j) index = index * levels[j] + static_cast<std::size_t>(level[j]);
  return index;
}

LazyShare::LazyShare(const RoutingGrid& grid, std::size_t cells)
    : grid_(&grid),
      cells_(cells),
      last_levels_(grid.levels.back()),
      inner_levels_(grid.thresholds() > 1 ? grid.levels[grid.thresholds() - 2] : 1),
      block_(kNone),
      bins_(last_levels_ * cells),
      rows_(last_levels_ * cells) {
  const Escalations& requests = grid.requests;
  const double total = std::accumulate(requests.weight.begin(), requests.weight.end(), 0.0);
  for (const double weight : requests.weight) weight_.push_back(std::rint(weight / total / kUnit) * kUnit);
  const std::size_t thresholds = grid.thresholds();
  const auto inner = [&](std::size_t request) {
    return thresholds > 1 ? static_cast<std::size_t>(requests.level[request * thresholds + thresholds - 2]) : 0;
  };
  inner_at_.assign(inner_levels_ + 1, 0);
  for (std::size_t r = 0; r < requests.count(); ++r) ++inner_at_[inner(r) + 1];
  std::partial_sum(inner_at_.begin(), inner_at_.end(), inner_at_.begin());
  by_inner_.resize(requests.count());
  std::vector<std::size_t> next(inner_at_.begin(), inner_at_.end() - 1);
  for (std::size_t r = 0; r < requests.count(); ++r) by_inner_[next[inner(r)]++] = static_cast<std::uint32_t>(r);
}

std::span<const double> LazyShare::row(std::size_t prefix) {
  const std::size_t block = prefix / last_levels_;
  if (block != block_) add_up(block);
  return {rows_.data() + prefix % last_levels_ * cells_, cells_};
}

void LazyShare::add_up(std::size_t block) {
  const std::size_t inner = block % inner_levels_, outer = block / inner_levels_;
  std::size_t begin = 0;  // level of the threshold before the last whose requests are still to be added
  if (block_ != kNone && block_ / inner_levels_ == outer && block_ % inner_levels_ < inner)
    begin = block_ % inner_levels_ + 1;
  else
    std::fill(bins_.begin(), bins_.end(), 0);
  block_ = block;

  const std::size_t thresholds = grid_->thresholds();
  std::vector<std::int32_t> limit;  // levels of the thresholds before those two
  for (std::size_t j = thresholds > 1 ? thresholds - 2 : 0, left = outer; j-- > 0; left /= grid_->levels[j])
    limit.insert(limit.begin(), static_cast<std::int32_t>(left % grid_->levels[j]));
  for (std::size_t at = inner_at_[begin]; at < inner_at_[inner + 1]; ++at) {
    const std::size_t request = by_inner_[at];
    const std::int32_t* level = grid_->requests.level.data() + request * thresholds;
    bool reaches = true;
    for (std::size_t j = 0; j < limit.size(); ++j) reaches &= level[j] <= limit[j];
    if (reaches)
      bins_[static_cast<std::size_t>(level[thresholds - 1]) * cells_ +
            static_cast<std::size_t>(grid_->requests.cell[request])] += weight_[request];
  }
  std::copy_n(bins_.begin(), cells_, rows_.begin());
  for (std::size_t i = cells_; i < rows_.size(); ++i) rows_[i] = rows_[i - cells_] + bins_[i];
}

std::vector<double> LazyShare::sums(std::span<const double> value_of_cell) const {
  const Escalations& requests = grid_->requests;
  const std::size_t thresholds = grid_->thresholds(), count = grid_->rows(grid_->last());
  std::vector<double> sums(count, 0.0);
  for (std::size_t r = 0; r < requests.count(); ++r) {
    std::size_t index = 0;
    for (std::size_t j = 0; j < thresholds; ++j)
      index = index * grid_->levels[j] + static_cast<std::size_t>(requests.level[r * thresholds + j]);
    sums[index] += weight_[r] * value_of_cell[static_cast<std::size_t>(requests.cell[r])];
  }
  for (std::size_t j = thresholds, stride = 1; j-- > 0; stride *= grid_->levels[j]) {
    const std::size_t slab = stride * grid_->levels[j];
    for (std::size_t start = 0; start < count; start += slab)
      for (std::size_t i = start + stride; i < start + slab; ++i) sums[i] += sums[i - stride];
  }
  return sums;
}

}  // namespace cascadia
