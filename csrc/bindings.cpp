#include <pybind11/pybind11.h>

#include "parallel.hpp"

namespace py = pybind11;

namespace cascadia {
void register_model(py::module_& m);
void register_load(py::module_& m);
void register_stage(py::module_& m);
void register_search(py::module_& m);
void register_paths(py::module_& m);
void register_stations(py::module_& m);
void register_simulation(py::module_& m);
}  // namespace cascadia

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of cascadia_fast: latency model, look-up tables and search. Arrays are C-contiguous float64.";
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const cascadia::Cancelled&) {
      // The signal handler has set KeyboardInterrupt already, unless it chose to go on.
      if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
  });
  cascadia::register_model(m);
  cascadia::register_load(m);
  cascadia::register_stage(m);
  cascadia::register_search(m);
  cascadia::register_paths(m);
  cascadia::register_stations(m);
  cascadia::register_simulation(m);
}
