#pragma once

namespace cascadia {

/// Peak figures of one GPU and of its links; 0 operations per second means that the GPU lacks the format.
struct Gpu {
  double memory_bytes = 0;
  double bandwidth_bytes_per_s = 0;
  double bf16_flops_per_s = 0;
  double fp8_flops_per_s = 0;
  double int8_ops_per_s = 0;
  double link_bytes_per_s = 0;       // to GPUs of the same node, per direction
  double internode_bytes_per_s = 0;  // to other nodes, per GPU and direction
};

/// What an engine reaches of those peaks, for one GPU type and one weight format. Fractions of a peak unless the
/// name carries a unit.
struct Efficiency {
  double dense_memory = 0;
  double dense_compute = 0;
  double expert_memory = 0;
  double expert_compute = 0;
  double attention_memory = 0;
  double attention_compute = 0;
  double layer_overhead_s = 0;     // kernel gaps and small kernels of one layer
  double expert_overhead_s = 0;    // routing and permutation of one mixture-of-experts layer
  double step_overhead_s = 0;      // scheduler and sampling, once per iteration
  double sequence_overhead_s = 0;  // the same, per sampled sequence
  double allreduce_latency_s = 0;
  double allreduce_bandwidth = 0;  // of link_bytes_per_s
  double hop_latency_s = 0;        // activations handed from one pipeline stage to the next
  double hop_bandwidth = 0;        // of link_bytes_per_s or internode_bytes_per_s
};

/// Parallelism of one engine: tp GPUs share every layer, pp groups of them split the layers.
struct Shape {
  int tp = 1;
  int pp = 1;
  int gpus() const { return tp * pp; }
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// What a serving engine is started with.
struct EngineLimits {
  int max_num_seqs = 256;
  int max_batched_tokens = 8192;
  double memory_utilization = 0.9;
  int gpus_per_node = 8;
};

}  // namespace cascadia
