#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "hardware.hpp"
#include "memory.hpp"
#include "model.hpp"
#include "shapes.hpp"
#include "step_time.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace cascadia {
namespace {

using Amounts = py::array_t<double, py::array::c_style | py::array::forcecast>;

void require_amount(double value) {
  if (!(value >= 0) || !std::isfinite(value)) {
    throw std::invalid_argument("A token or sequence count is " + std::to_string(value) +
                                ": give finite numbers that are not negative.");
  }
}

void require_above_zero(double value, const char* field) {
  if (!(value > 0) || !std::isfinite(value)) {
    throw std::invalid_argument(std::string(field) + " is " + std::to_string(value) +
                                ": give a finite number above 0.");
  }
}

void require_not_negative(double value, const char* field) {
  if (!(value >= 0) || !std::isfinite(value)) {
    throw std::invalid_argument(std::string(field) + " is " + std::to_string(value) +
                                ": give a finite number that is not negative.");
  }
}

void require_at_most(int value, int most, const char* field) {
  if (value > most) {
    throw std::invalid_argument(std::string(field) + " is " + std::to_string(value) + ": give at most " +
                                std::to_string(most) + ".");
  }
}

/// Lets a method of Replica take scalars or arrays, which broadcast.
template <typename... Args>
auto broadcast(double (Replica::*method)(Args...) const) {
  return py::vectorize([method](const Replica* replica, Args... amounts) {
    (require_amount(amounts), ...);
    return (replica->*method)(amounts...);
  });
}

Architecture make_architecture(int layers, int hidden, int heads, int kv_heads, int head_dim, int vocab,
                               int dense_layers, int dense_intermediate, int experts, int experts_per_token,
                               int expert_intermediate, int shared_intermediate, int q_lora_rank, int kv_lora_rank,
                               int qk_nope_dim, int qk_rope_dim, int v_head_dim, int window, int windowed_layers,
                               bool tied_embeddings, bool gated) {
  const Architecture a{layers,
                       hidden,
                       heads,
                       kv_heads,
                       head_dim,
                       vocab,
                       dense_layers,
                       dense_intermediate,
                       experts,
                       experts_per_token,
                       expert_intermediate,
                       shared_intermediate,
                       q_lora_rank,
                       kv_lora_rank,
                       qk_nope_dim,
                       qk_rope_dim,
                       v_head_dim,
                       window,
                       windowed_layers,
                       tied_embeddings,
                       gated};
  validate(a);
  return a;
}

Gpu make_gpu(double memory_bytes, double bandwidth_bytes_per_s, double bf16_flops_per_s,
             std::optional<double> fp8_flops_per_s, std::optional<double> int8_ops_per_s, double link_bytes_per_s,
             double internode_bytes_per_s) {
  require_above_zero(memory_bytes, "memory_bytes");
  require_above_zero(bandwidth_bytes_per_s, "bandwidth_bytes_per_s");
  require_above_zero(bf16_flops_per_s, "bf16_flops_per_s");
  if (fp8_flops_per_s) require_above_zero(*fp8_flops_per_s, "fp8_flops_per_s");
  if (int8_ops_per_s) require_above_zero(*int8_ops_per_s, "int8_ops_per_s");
  require_above_zero(link_bytes_per_s, "link_bytes_per_s");
  require_above_zero(internode_bytes_per_s, "internode_bytes_per_s");
  return {memory_bytes,
          bandwidth_bytes_per_s,
          bf16_flops_per_s,
          fp8_flops_per_s.value_or(0),
          int8_ops_per_s.value_or(0),
          link_bytes_per_s,
          internode_bytes_per_s};
}

struct EfficiencyField {
  const char* name;
  double Efficiency::* value;
  bool above_zero;  // a share of a peak; the others may be zero
};

constexpr EfficiencyField kEfficiencyFields[] = {
    {"dense_memory", &Efficiency::dense_memory, true},
    {"dense_compute", &Efficiency::dense_compute, true},
    {"expert_memory", &Efficiency::expert_memory, true},
    {"expert_compute", &Efficiency::expert_compute, true},
    {"expert_half_width", &Efficiency::expert_half_width, false},
    {"expert_imbalance", &Efficiency::expert_imbalance, false},
    {"attention_memory", &Efficiency::attention_memory, true},
    {"attention_compute", &Efficiency::attention_compute, true},
    {"prefill_compute", &Efficiency::prefill_compute, true},
    {"activation_passes", &Efficiency::activation_passes, false},
    {"head_s", &Efficiency::head_s, false},
    {"gemm_s", &Efficiency::gemm_s, false},
    {"attention_s", &Efficiency::attention_s, false},
    {"latent_attention_s", &Efficiency::latent_attention_s, false},
    {"expert_s", &Efficiency::expert_s, false},
    {"layer_s", &Efficiency::layer_s, false},
    {"prompt_layer_s", &Efficiency::prompt_layer_s, false},
    {"prompt_expert_s", &Efficiency::prompt_expert_s, false},
    {"step_overhead_s", &Efficiency::step_overhead_s, false},
    {"sequence_overhead_s", &Efficiency::sequence_overhead_s, false},
    {"request_overhead_s", &Efficiency::request_overhead_s, false},
    {"allreduce_latency_s", &Efficiency::allreduce_latency_s, false},
    {"allreduce_exchange_s", &Efficiency::allreduce_exchange_s, false},
    {"allreduce_bandwidth", &Efficiency::allreduce_bandwidth, true},
    {"bulk_latency_s", &Efficiency::bulk_latency_s, false},
    {"bulk_bandwidth", &Efficiency::bulk_bandwidth, true},
    {"hop_latency_s", &Efficiency::hop_latency_s, false},
    {"hop_bandwidth", &Efficiency::hop_bandwidth, true},
};

Efficiency make_efficiency(const py::kwargs& numbers) {
  Efficiency efficiency;
  for (const EfficiencyField& field : kEfficiencyFields) {
    if (!numbers.contains(field.name)) {
      throw std::invalid_argument("Efficiency lacks " + std::string(field.name) + ": give every number by its name.");
    }
    const auto value = numbers[field.name].cast<double>();
    field.above_zero ? require_above_zero(value, field.name) : require_not_negative(value, field.name);
    efficiency.*field.value = value;
  }
  if (numbers.size() != std::size(kEfficiencyFields)) {
    throw std::invalid_argument("Efficiency got " + std::to_string(numbers.size()) + " numbers instead of " +
                                std::to_string(std::size(kEfficiencyFields)) + ": leave out the unknown ones.");
  }
  return efficiency;
}

EngineLimits make_limits(int max_num_seqs, int max_batched_tokens, double memory_utilization, int gpus_per_node) {
  require_above_zero(max_num_seqs, "max_num_seqs");
  require_above_zero(max_batched_tokens, "max_batched_tokens");
  require_above_zero(memory_utilization, "memory_utilization");
  if (memory_utilization > 1) {
    throw std::invalid_argument("memory_utilization is " + std::to_string(memory_utilization) +
                                ": give a share of the GPU memory, at most 1.");
  }
  require_above_zero(gpus_per_node, "gpus_per_node");
  require_at_most(max_num_seqs, 1 << 16, "max_num_seqs");
  require_at_most(max_batched_tokens, 1 << 20, "max_batched_tokens");
  return {max_num_seqs, max_batched_tokens, memory_utilization, gpus_per_node};
}

py::array_t<double> step_times(const Replica& replica, const Amounts& sequences, const Amounts& context,
                               const Amounts& prompt_tokens, const Amounts& prompt_before) {
  const auto size = static_cast<std::size_t>(sequences.size());
  for (const Amounts* column : {&sequences, &context, &prompt_tokens, &prompt_before}) {
    if (column->ndim() != 1 || static_cast<std::size_t>(column->size()) != size) {
      throw std::invalid_argument("step_times got arrays of different shapes: give four 1-D arrays of one length.");
    }
  }
  py::array_t<double> times(sequences.size());
  const double* n = sequences.data();
  const double* c = context.data();
  const double* p = prompt_tokens.data();
  const double* b = prompt_before.data();
  double* out = times.mutable_data();
  {
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < size; ++i) {
      for (const double amount : {n[i], c[i], p[i], b[i]}) require_amount(amount);
      out[i] = replica.step_s(n[i], c[i], p[i], b[i]);
    }
  }
  times.attr("setflags")("write"_a = false);
  return times;
}

void register_architecture(py::module_& m) {
  py::class_<Architecture>(m, "Architecture", "Shape of a transformer; 0 means absent. Widths and counts, no units.")
      .def(py::init(&make_architecture), py::kw_only(), "layers"_a, "hidden"_a, "heads"_a, "kv_heads"_a = 0,
           "head_dim"_a = 0, "vocab"_a, "dense_layers"_a, "dense_intermediate"_a = 0, "experts"_a = 0,
           "experts_per_token"_a = 0, "expert_intermediate"_a = 0, "shared_intermediate"_a = 0, "q_lora_rank"_a = 0,
           "kv_lora_rank"_a = 0, "qk_nope_dim"_a = 0, "qk_rope_dim"_a = 0, "v_head_dim"_a = 0, "window"_a = 0,
           "windowed_layers"_a = 0, "tied_embeddings"_a = false, "gated"_a = true,
           "Latent attention (MLA) when kv_lora_rank > 0; layers beyond dense_layers are mixtures of experts.\n\n"
           "Raises ValueError naming the first field that contradicts the others.")
      .def_property_readonly("total_parameters", &total_parameters, "All weights.")
      .def_property_readonly("active_parameters", &active_parameters,
                             "Weights one token is multiplied with: LM head included, embedding look-up not.")
      .def_property_readonly("embedding_parameters", &embedding_parameters, "Input embedding table: vocab x hidden.")
      .def("weight_bytes", &weight_bytes, "precision"_a, "Bytes of all weights, stored once.")
      .def("kv_cache_bytes", &kv_cache_bytes, "precision"_a, "context_tokens"_a,
           "Bytes the KV cache of one request takes, stored once.");
  py::class_<Precision>(m, "Precision", "How weights and KV cache are stored.")
      .def(py::init(&parse_precision), py::kw_only(), "weights"_a, "kv"_a = "bf16",
           "weights: bf16, fp8, int8, int4 or mxfp4 (routed experts only); kv: bf16 or fp8.\n\n"
           "int4 and mxfp4 compute in bf16. Embeddings, LM head, router and norms stay in bf16.")
      .def_readonly("kv_bytes_per_element", &Precision::kv_bytes_per_element);
}

std::string describe(const Shape& s) {
  std::string text = "Shape(tp=" + std::to_string(s.tp) + ", pp=" + std::to_string(s.pp);
  if (s.attention_dp > 1) text += ", attention_dp=" + std::to_string(s.attention_dp);
  if (s.ep > 1) text += ", ep=" + std::to_string(s.ep);
  return text + ")";
}

void register_hardware(py::module_& m) {
  py::class_<Gpu>(m, "Gpu", "Peak figures of one GPU and its links, SI units.")
      .def(py::init(&make_gpu), py::kw_only(), "memory_bytes"_a, "bandwidth_bytes_per_s"_a, "bf16_flops_per_s"_a,
           "fp8_flops_per_s"_a = py::none(), "int8_ops_per_s"_a = py::none(), "link_bytes_per_s"_a,
           "internode_bytes_per_s"_a,
           "No fp8 or int8 operations: the GPU lacks the format and computes in bf16. Links count one direction.");
  py::class_<Efficiency>(m, "Efficiency", "What an engine reaches of the peaks, for one GPU type and weight format.")
      .def(py::init(&make_efficiency),
           "Fractions of a peak, or seconds where the name says so; all are needed, by name.")
      .def_property_readonly_static(
          "names",
          [](const py::object&) {
            py::tuple names(std::size(kEfficiencyFields));
            for (std::size_t i = 0; i < names.size(); ++i) names[i] = kEfficiencyFields[i].name;
            return names;
          },
          "The names of the numbers.");
  py::class_<Shape>(m, "Shape", "Parallelism of one engine.")
      .def(py::init<int, int, int, int>(), "tp"_a = 1, "pp"_a = 1, "attention_dp"_a = 1, "ep"_a = 1,
           "pp groups split the layers. In a group, tp GPUs share the attention of a request, attention_dp such sets\n"
           "serve different requests, all share the feed-forward layers, and ep parts hold different experts.")
      .def_readonly("tp", &Shape::tp)
      .def_readonly("pp", &Shape::pp)
      .def_readonly("attention_dp", &Shape::attention_dp)
      .def_readonly("ep", &Shape::ep)
      .def_property_readonly("gpus", &Shape::gpus)
      .def(py::self == py::self)
      .def("__hash__", [](const Shape& s) { return py::hash(py::make_tuple(s.tp, s.pp, s.attention_dp, s.ep)); })
      .def("__repr__", &describe);
  py::class_<EngineLimits>(m, "EngineLimits", "What a serving engine is started with.")
      .def(py::init(&make_limits), py::kw_only(), "max_num_seqs"_a = 256, "max_batched_tokens"_a = 8192,
           "memory_utilization"_a = 0.9, "gpus_per_node"_a = 8,
           "Sequences per step, tokens per step, share of the memory, GPUs of one node.")
      .def_readonly("max_num_seqs", &EngineLimits::max_num_seqs)
      .def_readonly("max_batched_tokens", &EngineLimits::max_batched_tokens)
      .def_readonly("memory_utilization", &EngineLimits::memory_utilization)
      .def_readonly("gpus_per_node", &EngineLimits::gpus_per_node);
}

void register_replica(py::module_& m) {
  py::class_<Replica>(m, "Replica", "One engine: its speed and memory, whatever its workload. Times in seconds.")
      .def(py::init<const Architecture&, const Precision&, const Gpu&, const Efficiency&, Shape, const EngineLimits&>(),
           py::kw_only(), "architecture"_a, "precision"_a, "gpu"_a, "efficiency"_a, "shape"_a, "limits"_a,
           "Raises ValueError for a shape that the model or the node does not allow.")
      .def("linear_s", broadcast(&Replica::linear_s), "tokens"_a, "sampled"_a,
           "One round of `tokens` tokens without attention; `sampled` of them pass the LM head. Arrays broadcast.")
      .def("decode_attention_s", broadcast(&Replica::decode_attention_s), "context_tokens"_a,
           "Attention of one decoding sequence in one round. Arrays broadcast.")
      .def("decode_attention_sum_s", broadcast(&Replica::decode_attention_sum_s), "tokens_in"_a, "tokens_out"_a,
           "The same, summed over the output tokens of a request. Arrays broadcast.")
      .def("prefill_attention_s", broadcast(&Replica::prefill_attention_s), "tokens"_a, "before"_a,
           "Attention of a prompt chunk after `before` tokens of the prompt. Arrays broadcast.")
      .def("fill_s", broadcast(&Replica::fill_s), "tokens"_a,
           "What a first token takes beyond its rounds: the front end, and crossing a pipeline. Arrays broadcast.")
      .def("step_s", broadcast(&Replica::step_s), "sequences"_a, "context_per_sequence"_a, "prompt_tokens"_a,
           "prompt_before"_a, "One round: decoding sequences of equal context and one prompt chunk. Arrays broadcast.")
      .def("step_times", &step_times, "sequences"_a, "context_per_sequence"_a, "prompt_tokens"_a, "prompt_before"_a,
           "step_s of four 1-D arrays of shape (n,); returns (n,), read-only. Releases the GIL.")
      .def("kv_bytes", broadcast(&Replica::kv_bytes), "context_tokens"_a,
           "KV cache one request takes on the whole engine [bytes]. Arrays broadcast.")
      .def_property_readonly("kv_capacity_bytes", &Replica::kv_capacity_bytes,
                             "KV cache of the whole engine; negative when the weights do not fit.")
      .def_property_readonly("shape", &Replica::shape);
  m.def("valid_shapes", &valid_shapes, py::kw_only(), "architecture"_a, "precision"_a, "gpu"_a, "gpus_total"_a,
        "limits"_a,
        "Shapes of at most `gpus_total` GPUs that pack into nodes and hold the model with a useful KV cache.");
  py::class_<MemoryPlan>(m, "MemoryPlan", "Memory of the fullest GPU of an engine [bytes].")
      .def_readonly("weight_bytes", &MemoryPlan::weight_bytes)
      .def_readonly("reserve_bytes", &MemoryPlan::reserve_bytes)
      .def_readonly("kv_capacity_bytes", &MemoryPlan::kv_capacity_bytes);
  m.def("memory_plan", &memory_plan, py::kw_only(), "architecture"_a, "precision"_a, "gpu"_a, "shape"_a, "limits"_a,
        "Weights, reserve and KV capacity of the fullest GPU.");
}

}  // namespace

void register_model(py::module_& m) {
  register_architecture(m);
  register_hardware(m);
  register_replica(m);
}

}  // namespace cascadia
