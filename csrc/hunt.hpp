// The search for the best of many routings: bounds first, and a full allocation only where they leave hope.
#pragma once
#include <chrono>
#include <tuple>

#include "exact.hpp"

namespace cascadia {

class Hunt {
 public:
  Hunt(CascadeSearch& search, Loads& loads, const Question& question, const std::function<bool()>& interrupted);

  ExactResult best();
  std::vector<ExactResult> front();

 private:
  enum class Fit { below, equal, too_few_gpus, too_slow };
  struct Candidate {
    double bound;  // GPUs or dollars that its load takes at least
    std::uint32_t routing, index;
  };
  // One thread's view of the stations. No station but the last can do with fewer GPUs than its floor says, in any plan
  // that is still of interest: the incumbent only gets better.
  struct Worker {
    Loads* loads;
    std::vector<std::vector<double>> floor_gpus;  // per station and row
  };
  using Key = std::tuple<double, std::vector<double>, double, int, int, std::uint32_t>;

  std::vector<Candidate> not_overloaded();
  std::size_t run(std::span<const Candidate> order, const std::function<bool()>& found);
  void test(std::span<const Candidate> batch, std::vector<Fit>& verdicts);
  Fit test(Worker& worker, const Candidate& candidate);
  Fit may_spend_less(Worker& worker, const Candidate& candidate);
  Fit may_be_faster(Worker& worker, std::uint32_t routing, int gpus);
  Fit fit(Worker& worker, std::uint32_t routing, std::span<const double> limits_s, bool strictly, int gpus);
  int needed_gpus(Worker& worker, std::uint32_t routing, int gpus);
  double floor_gpus(const Worker& worker, std::uint32_t routing, std::size_t from);
  void raise_floor(Worker& worker, std::uint32_t routing, std::size_t station, double gpus);
  bool evaluate(const Candidate& candidate);
  Allocation allocation_of(const Candidate& candidate);
  Key key_of(const Candidate& candidate, const Allocation& allocation) const;
  bool out_of_time() const;
  double bound_of(std::span<const Candidate> left);

  CascadeSearch& search_;
  const Setting& setting_;
  const RoutingGrid& grid_;
  const Question& question_;
  const std::function<bool()>& interrupted_;
  std::chrono::steady_clock::time_point started_;
  double ceiling_s_;       // on every p95, finite
  bool strictly_ = false;  // only a smaller value is of interest
  std::size_t last_;
  std::vector<std::unique_ptr<Loads>> more_loads_;
  std::vector<Worker> workers_;
  ExactResult result_;
  Key key_;  // of the incumbent
};

}  // namespace cascadia
