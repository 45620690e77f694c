#include <pybind11/stl.h>

#include "bindings_arrays.hpp"
#include "table.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

LengthCells cells_of(const Floats& tokens_in, const Floats& tokens_out) {
  require(
      tokens_in.ndim() == 1 && tokens_out.ndim() == 1 && tokens_in.size() == tokens_out.size() && tokens_in.size() > 0,
      "Length cells have " + std::to_string(tokens_in.size()) + " prompt and " + std::to_string(tokens_out.size()) +
          " answer lengths: give two non-empty 1-D arrays of one length.");
  LengthCells cells;
  cells.tokens_in.assign(view(tokens_in).begin(), view(tokens_in).end());
  cells.tokens_out.assign(view(tokens_out).begin(), view(tokens_out).end());
  for (std::size_t k = 0; k < cells.size(); ++k)
    require(cells.tokens_in[k] > 0 && cells.tokens_in[k] < 1e9 && cells.tokens_out[k] > 0 && cells.tokens_out[k] < 1e9,
            "Length cell " + std::to_string(k) + " has " + std::to_string(cells.tokens_in[k]) + " prompt and " +
                std::to_string(cells.tokens_out[k]) + " answer tokens: both must be above 0 and below 1e9.");
  return cells;
}

// Many evaluations on one shape: each row of `share` with its rate. The cells' tables are built within the call.
py::array_t<double> latency_quantiles(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                                      const Floats& share, const Floats& rate_per_s, double arrival_scv, double q) {
  const LengthCells cells = cells_of(tokens_in, tokens_out);
  const auto rows = static_cast<std::size_t>(rate_per_s.size());
  require(
      share.ndim() == 2 && static_cast<std::size_t>(share.shape(0)) == rows &&
          static_cast<std::size_t>(share.shape(1)) == cells.size(),
      "share must have shape (rates, cells) = (" + std::to_string(rows) + ", " + std::to_string(cells.size()) + ").");
  std::vector<double> result(rows);
  {
    const py::gil_scoped_release release;
    const LoadModel model(replica, cells, std::make_shared<const Nodes>(cells.size(), (cells.size() + 7) / 8 * 8));
    Load load;
    Scratch scratch;
    for (std::size_t r = 0; r < rows; ++r) {
      model.prepare({share.data() + r * cells.size(), cells.size()}, load);
      result[r] = model.fits() ? model.quantile_s(load, rate_per_s.data()[r], arrival_scv, q, scratch) : kUnreachable;
    }
  }
  return read_only(result);
}

// Largest stable rate of one replica for each row of `share`.
py::array_t<double> capacities(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                               const Floats& share) {
  const LengthCells cells = cells_of(tokens_in, tokens_out);
  require(share.ndim() == 2 && static_cast<std::size_t>(share.shape(1)) == cells.size(),
          "share must have shape (rows, " + std::to_string(cells.size()) + ").");
  std::vector<double> result(static_cast<std::size_t>(share.shape(0)));
  {
    const py::gil_scoped_release release;
    const LoadModel model(replica, cells, std::make_shared<const Nodes>(cells.size(), (cells.size() + 7) / 8 * 8));
    Load load;
    for (std::size_t r = 0; r < result.size(); ++r) {
      model.prepare({share.data() + r * cells.size(), cells.size()}, load);
      result[r] = model.fits() ? load.capacity_per_s : 0;
    }
  }
  return read_only(result);
}

// The pruning bound of the search: least latency of each row of `share` at any rate.
py::array_t<double> idle_bounds(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                                const Floats& share, double q) {
  const LengthCells cells = cells_of(tokens_in, tokens_out);
  require(share.ndim() == 2 && static_cast<std::size_t>(share.shape(1)) == cells.size(),
          "share must have shape (rows, " + std::to_string(cells.size()) + ").");
  std::vector<double> result(static_cast<std::size_t>(share.shape(0)));
  {
    const py::gil_scoped_release release;
    const LoadModel model(replica, cells, std::make_shared<const Nodes>(cells.size(), (cells.size() + 7) / 8 * 8));
    for (std::size_t r = 0; r < result.size(); ++r)
      result[r] = model.idle_bound_s({share.data() + r * cells.size(), cells.size()}, q);
  }
  return read_only(result);
}

}  // namespace

void register_load(py::module_& m) {
  m.def("latency_quantiles", &latency_quantiles, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a,
        "rate_per_s"_a, "arrival_scv"_a = 1.0, "q"_a = 0.95,
        "Latency quantile [s] of one replica for each row of `share` (rows, cells) at its rate (rows,); +inf: "
        "unstable.\n\n"
        "tokens_in, tokens_out: (cells,). arrival_scv: squared coefficient of variation of the inter-arrival times.");
  m.def("capacities", &capacities, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a,
        "Largest stable rate [1/s] of one replica for each row of `share` (rows, cells); 0: a request does not fit.");
  m.def("idle_bounds", &idle_bounds, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a, "q"_a = 0.95,
        "Lower bound [s] of latency_quantiles at any rate, for each row of `share` (rows, cells).");
}

}  // namespace cascadia
