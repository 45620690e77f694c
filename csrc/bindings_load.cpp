#include <pybind11/stl.h>

#include <optional>

#include "bindings_arrays.hpp"
#include "table.hpp"
#include "vector_math.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

std::span<const double> row(const Floats& share, std::size_t r, const LengthCells& cells) {
  return view(share).subspan(r * cells.size(), cells.size());
}

LengthCells cells_of(const Floats& tokens_in, const Floats& tokens_out,
                     const std::optional<Floats>& spread_out = std::nullopt) {
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
  if (!spread_out) return cells;
  require(spread_out->size() == tokens_out.size(),
          "spread_out has " + std::to_string(spread_out->size()) + " entries: give one for each length cell.");
  cells.spread_out.assign(view(*spread_out).begin(), view(*spread_out).end());
  require_spread(cells);
  return cells;
}

// Rows of shares, one per traffic; each must reach the stage at all.
std::size_t checked_rows(const Floats& share, const LengthCells& cells) {
  require(share.ndim() == 2 && static_cast<std::size_t>(share.shape(1)) == cells.size(),
          "share must have shape (rows, " + std::to_string(cells.size()) + ").");
  require_share(view(share), "share");
  const auto rows = static_cast<std::size_t>(share.shape(0));
  for (std::size_t r = 0; r < rows; ++r)
    require(sum(row(share, r, cells)) > 0, "share[" + std::to_string(r) +
                                               "] is zero everywhere: give a row that "
                                               "some requests belong to.");
  return rows;
}

// Evaluates every row on one shape. The tables of the cells are built within the call.
template <class Evaluate>
py::array_t<double> per_row(const Replica& replica, const LengthCells& cells, const Floats& share,
                            const Evaluate& evaluate) {
  std::vector<double> result(checked_rows(share, cells));
  {
    const py::gil_scoped_release release;
    const LoadModel model(replica, cells, std::make_shared<const Nodes>(cells));
    for (std::size_t r = 0; r < result.size(); ++r) result[r] = evaluate(model, row(share, r, cells), r);
  }
  return read_only(result);
}

py::array_t<double> latency_quantiles(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                                      const Floats& share, const Floats& rate_per_s, double arrival_scv,
                                      double replicas, double q, const std::optional<Floats>& spread_out,
                                      const std::optional<Floats>& dispersion) {
  const Dispersion known = dispersion_of(dispersion);
  require(share.ndim() == 2 && rate_per_s.ndim() == 1 && rate_per_s.size() == share.shape(0),
          "rate_per_s has " + std::to_string(rate_per_s.size()) + " entries: give one for each row of share.");
  for (const double rate : view(rate_per_s))
    require(rate > 0 && rate < kUnreachable, "A rate is " + std::to_string(rate) +
                                                 " requests per second: give a "
                                                 "finite number above 0.");
  require_quantile(arrival_scv, q);
  require(replicas >= 1 && replicas < kUnreachable,
          "replicas is " + std::to_string(replicas) + ": give a finite number of at least 1.");
  Load load;
  Scratch scratch;
  return per_row(replica, cells_of(tokens_in, tokens_out, spread_out), share,
                 [&](const LoadModel& model, std::span<const double> row_share, std::size_t r) {
                   if (!model.fits()) return kUnreachable;
                   model.prepare(row_share, load);
                   return model.quantile_s(
                       load, {rate_per_s.data()[r], arrival_scv, replicas, known.count > 0 ? &known : nullptr}, q,
                       scratch);
                 });
}

py::tuple closed_loop(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out, const Floats& share,
                      const Floats& concurrency, int rounds) {
  const LengthCells cells = cells_of(tokens_in, tokens_out);
  require(share.ndim() == 1 && static_cast<std::size_t>(share.size()) == cells.size(),
          "share must have shape (" + std::to_string(cells.size()) + ",).");
  require_share(view(share), "share");
  require(sum(view(share)) > 0, "share is zero everywhere: give the share of some requests.");
  for (const double clients : view(concurrency))
    require(clients >= 1 && clients < kUnreachable,
            "A concurrency is " + std::to_string(clients) + ": give a finite number of at least 1.");
  require(rounds >= 2, "rounds is " + std::to_string(rounds) + ": give a number of at least 2.");
  const auto n = static_cast<std::size_t>(concurrency.size());
  std::array<std::vector<double>, 4> found;
  {
    const py::gil_scoped_release release;
    const LoadModel model(replica, cells, std::make_shared<const Nodes>(cells));
    Load load;
    if (model.fits()) model.prepare(view(share), load);
    for (std::size_t i = 0; i < n; ++i) {
      ClosedLoop means{kUnreachable, kUnreachable, 0, 0};
      if (model.fits()) means = model.closed_loop(load, concurrency.data()[i], rounds);
      const std::array<double, 4> values{means.ttft_s, means.tpot_s, means.running, means.throughput_per_s};
      for (std::size_t v = 0; v < values.size(); ++v) found[v].push_back(values[v]);
    }
  }
  return py::make_tuple(read_only(found[0]), read_only(found[1]), read_only(found[2]), read_only(found[3]));
}

// Largest stable rate of one replica for each row of `share`.
py::array_t<double> capacities(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                               const Floats& share) {
  Load load;
  return per_row(replica, cells_of(tokens_in, tokens_out), share,
                 [&](const LoadModel& model, std::span<const double> row_share, std::size_t) {
                   if (!model.fits()) return 0.0;
                   model.prepare(row_share, load);
                   return load.capacity_per_s;
                 });
}

// The pruning bound of the search: least latency of each row of `share` at any rate.
py::array_t<double> idle_bounds(const Replica& replica, const Floats& tokens_in, const Floats& tokens_out,
                                const Floats& share, double q, const std::optional<Floats>& spread_out) {
  require_quantile(1, q);
  return per_row(replica, cells_of(tokens_in, tokens_out, spread_out), share,
                 [&](const LoadModel& model, std::span<const double> row_share, std::size_t) {
                   return model.idle_bound_s(row_share, q);
                 });
}

}  // namespace

void register_load(py::module_& m) {
  m.def("latency_quantiles", &latency_quantiles, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a,
        "rate_per_s"_a, "arrival_scv"_a = 1.0, "replicas"_a = 1.0, "q"_a = 0.95, "spread_out"_a = std::nullopt,
        "dispersion"_a = std::nullopt,
        "Latency quantile [s] of one replica for each row of `share` (rows, cells) at its rate (rows,); +inf: "
        "unstable.\n\n"
        "tokens_in, tokens_out, spread_out (standard deviation of the answers in a cell): (cells,). arrival_scv: "
        "squared coefficient of variation of the inter-arrival times of "
        "the whole stream, which goes to `replicas` equal replicas, each request to the one with the fewest "
        "outstanding; where they are not equal, `replicas` is the whole stream's rate over that of the one asked for.");
  m.def("closed_loop", &closed_loop, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a,
        "concurrency"_a, "rounds"_a = 10,
        "Mean (ttft_s, tpot_s, running, throughput_per_s), each (n,), of one replica under `concurrency` (n,) clients "
        "that start together and send `rounds` requests each, the next when the last is answered; +inf and 0: a "
        "request does not fit.\n\n"
        "tokens_in, tokens_out, share: (cells,). running: sequences in decode.");
  m.def("capacities", &capacities, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a,
        "Largest stable rate [1/s] of one replica for each row of `share` (rows, cells); 0: a request does not fit.");
  m.def("idle_bounds", &idle_bounds, py::kw_only(), "replica"_a, "tokens_in"_a, "tokens_out"_a, "share"_a, "q"_a = 0.95,
        "spread_out"_a = std::nullopt,
        "Lower bound [s] of latency_quantiles at any rate, for each row of `share` (rows, cells).");
}

}  // namespace cascadia
