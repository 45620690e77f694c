// The monitor's observe as a pybind11 method: same checks, same record, same ring; bench_monitor.py compiles it and
// times it beside the Cython class. Arguments have the types that pybind11 converts fastest: no None, no fractions of
// tokens, no sentences about bad values.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

struct Visit {
  Py_hash_t request;
  std::int64_t stage;
  double now_s;
  double latency_s;
  double input_tokens;
  double output_tokens;
  double score;
};

class Monitor {
 public:
  Monitor(std::int64_t stages, std::size_t capacity) : stages_(stages), ring_(capacity) {}

  void observe(const py::str& request_id, std::int64_t stage, std::int64_t input_tokens, std::int64_t output_tokens,
               double score, double latency_s, double now_s) {
    if (stage < 0 || stage >= stages_) throw std::invalid_argument("stage is no index of a model");
    if (input_tokens < 0 || input_tokens > 1'000'000'000) throw std::invalid_argument("input_tokens is out of range");
    if (output_tokens < 0 || output_tokens > 1'000'000'000)
      throw std::invalid_argument("output_tokens is out of range");
    if (!(std::isnan(score) || (score >= 0 && score <= 100))) throw std::invalid_argument("score is out of range");
    if (!std::isfinite(now_s)) throw std::invalid_argument("now_s is not finite");
    const double latency = std::isfinite(latency_s) && latency_s >= 0 ? latency_s : NAN;
    const auto tokens_in = static_cast<double>(input_tokens), tokens_out = static_cast<double>(output_tokens);
    ring_[next_] = {py::hash(request_id), stage, now_s, latency, tokens_in, tokens_out, score};
    if (++next_ == ring_.size()) next_ = 0;
    ++observations_;
  }

  py::array_t<Visit> visits() const { return py::array_t<Visit>(static_cast<py::ssize_t>(next_), ring_.data()); }

 private:
  std::int64_t stages_;
  std::vector<Visit> ring_;
  std::size_t next_ = 0;
  std::int64_t observations_ = 0;
};

PYBIND11_MODULE(monitor_pybind11, module) {
  PYBIND11_NUMPY_DTYPE(Visit, request, stage, now_s, latency_s, input_tokens, output_tokens, score);
  py::class_<Monitor>(module, "Monitor")
      .def(py::init<std::int64_t, std::size_t>(), py::arg("stages"), py::arg("capacity"))
      .def("observe", &Monitor::observe, py::arg("request_id"), py::arg("stage"), py::arg("input_tokens"),
           py::arg("output_tokens"), py::arg("score"), py::arg("latency_s"), py::arg("now_s"))
      .def("visits", &Monitor::visits);
}
