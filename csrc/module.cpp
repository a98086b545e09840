// The Python module of the library: its build information and, if emulated, the emulator's controls.
#include <pybind11/pybind11.h>

#include "launchers.h"

#ifdef METAZOO_EMULATED
#include "emulator.h"
#endif

PYBIND11_MODULE(METAZOO_MODULE, m) {
  m.def("build_info", [] {
    pybind11::dict info;
    info["metazoo"] = METAZOO_VERSION;
    info["torch"] = METAZOO_TORCH;
    info["compiler"] = METAZOO_COMPILER;
#ifndef METAZOO_EMULATED
    info["cuda"] = metazoo::cuda_version();
    info["architectures"] = METAZOO_ARCHS;
#endif
    return info;
  });
#ifdef METAZOO_EMULATED
  m.def("set_schedule", [](unsigned seed) { metazoo::emulator::machine().random.seed(seed); });
  m.def("launches", [] { return metazoo::emulator::machine().launches; });
#endif
}
