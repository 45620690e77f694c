#include <optional>

#include "bindings_arrays.hpp"
#include "table.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

StageLimits limits_of(int least_replicas, int most_replicas, int spare_replicas, double survive_s) {
  require(least_replicas >= 0 && least_replicas <= 1'000'000,
          "least_replicas is " + std::to_string(least_replicas) + ": give 0 to 1,000,000.");
  require(most_replicas >= std::max(least_replicas, 1) && most_replicas <= 1'000'000,
          "most_replicas is " + std::to_string(most_replicas) + ": give a number from " +
              std::to_string(std::max(least_replicas, 1)) + " (the least) to 1,000,000.");
  require(spare_replicas >= 0 && spare_replicas <= 1'000'000,
          "spare_replicas is " + std::to_string(spare_replicas) + ": give 0 to 1,000,000.");
  require(survive_s > 0, "survive_s is " + std::to_string(survive_s) + ": give seconds above 0.");
  return {least_replicas, most_replicas, spare_replicas, survive_s};
}

}  // namespace

void register_stage(py::module_& m) {
  py::class_<Choice>(m, "Choice",
                     "How one stage is deployed: `replicas` engines of one shape (-1: nothing runs), and in a mixed "
                     "stage `fill_replicas` of `fill_shape` (-1: none) beside them.")
      .def(py::init<int, int, int, double, int, int>(), "shape"_a, "replicas"_a, "gpus"_a, "latency_s"_a,
           "fill_shape"_a = -1, "fill_replicas"_a = 0)
      .def_readonly("shape", &Choice::shape)
      .def_readonly("replicas", &Choice::replicas)
      .def_readonly("gpus", &Choice::gpus)
      .def_readonly("latency_s", &Choice::latency_s)
      .def_readonly("fill_shape", &Choice::fill_shape)
      .def_readonly("fill_replicas", &Choice::fill_replicas);
  py::class_<StageLimits>(m, "StageLimits", "What a stage must keep to, whatever its traffic.")
      .def(py::init(&limits_of), py::kw_only(), "least_replicas"_a = 0, "most_replicas"_a = 1'000'000,
           "spare_replicas"_a = 0, "survive_s"_a = kUnreachable,
           "least_replicas: kept even where nobody reaches the stage. spare_replicas: with so many fewer, whichever "
           "they are, p95 is still within survive_s and utilisation under the cap.");
  py::class_<Traffic>(m, "Traffic", "Arrivals at the cascade and what a deployment must keep to.")
      .def(
          py::init([](double rate_per_s, double scv, double max_utilization, double quantile, bool keeps,
                      const std::optional<Floats>& dispersion, bool mixed) {
            return Traffic{rate_per_s, scv, max_utilization, quantile, keeps, dispersion_of(dispersion), mixed};
          }),
          py::kw_only(), "rate_per_s"_a, "scv"_a = 1.0, "max_utilization"_a = 0.9, "quantile"_a = 0.95,
          "idle_stage_keeps_replica"_a = false, "dispersion"_a = std::nullopt, "mixed"_a = false,
          "rate_per_s: of requests entering; scv: squared coefficient of variation of their gaps; dispersion: index of "
          "dispersion of their counts over windows of 1, 2, 4 ... mean gaps, where gaps are not independent; mixed: "
          "two shapes may serve a stage together.");
}

}  // namespace cascadia
