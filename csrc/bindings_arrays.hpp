// How arrays and signals cross the boundary to Python.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrivals.hpp"
#include "lengths.hpp"

namespace cascadia {

namespace py = pybind11;

using Floats = py::array_t<double, py::array::c_style>;
using Indexes = py::array_t<std::int32_t, py::array::c_style>;

template <class T>
std::span<const T> view(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
py::array_t<T> read_only(const std::vector<T>& values, std::vector<py::ssize_t> shape = {}) {
  if (shape.empty()) shape = {static_cast<py::ssize_t>(values.size())};
  py::array_t<T> array(shape);
  std::copy(values.begin(), values.end(), array.mutable_data());
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

// Asked from the calling thread while the GIL is released: has the user pressed Ctrl-C?
inline std::function<bool()> signals() {
  return [] {
    const py::gil_scoped_acquire hold;
    return PyErr_CheckSignals() != 0;
  };
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// The same for every entry; the message is made of the first that fails, and only then.
template <class T, class Condition, class Message>
void require_each(std::span<const T> values, const Condition& holds, const Message& message) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!holds(values[i])) throw std::invalid_argument(message(i, values[i]));
}

inline void require_share(std::span<const double> share, const std::string& name) {
  bool sound = true;
  for (const double s : share) sound &= s >= 0 && s <= 1e300;
  require(sound, name + " has a NaN, an infinite or a negative entry: give shares of requests.");
}

inline void require_spread(const LengthCells& cells) {
  for (std::size_t k = 0; k < cells.spread_out.size(); ++k)
    require(cells.spread_out[k] >= 0 && cells.spread_out[k] < 1e9,
            "The answers of length cell " + std::to_string(k) + " spread by " + std::to_string(cells.spread_out[k]) +
                " tokens: it must be 0 or more and below 1e9.");
}

inline Dispersion dispersion_of(const std::optional<Floats>& index) {
  Dispersion dispersion;
  if (!index) return dispersion;
  require(index->ndim() == 1 && index->size() <= static_cast<py::ssize_t>(Dispersion::kMost),
          "dispersion has " + std::to_string(index->size()) + " entries: give at most " +
              std::to_string(Dispersion::kMost) + ", for windows of 1, 2, 4 ... requests.");
  for (const double value : view(*index))
    require(value >= 0 && value < 1e12, "An index of dispersion is " + std::to_string(value) +
                                            ": give numbers that are not negative and below 1e12.");
  dispersion.count = static_cast<std::size_t>(index->size());
  std::copy(index->data(), index->data() + index->size(), dispersion.index.begin());
  return dispersion;
}

inline void require_quantile(double scv, double q) {
  require(scv >= 0 && scv < 1e12, "The squared coefficient of variation (scv) is " + std::to_string(scv) +
                                      ": give a finite number that is not negative.");
  require(q > 0 && q < 1, "The quantile is " + std::to_string(q) + ": give a number between 0 and 1.");
}

}  // namespace cascadia
