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

/// What an engine reaches of those peaks, for one GPU type, engine and pair of weight and KV formats. Fractions of a
/// peak unless the name carries a unit. Kernel times are those of a launch inside a captured graph.
struct Efficiency {
  double dense_memory = 0;
  double dense_compute = 0;
  double expert_memory = 0;
  double expert_compute = 0;
  double expert_half_width = 0;  // intermediate width per GPU at which expert arithmetic is half as efficient
  double expert_imbalance = 0;   // work of the fullest GPU beyond the mean under expert parallelism, as a share
  double attention_memory = 0;   // decode: reading the KV cache
  double attention_compute = 0;  // decode: arithmetic, which binds latent attention
  double prefill_compute = 0;
  double activation_passes = 0;    // times a token's hidden state crosses memory in one layer
  double head_s = 0;               // decode attention per sequence, layer and query head on one GPU
  double gemm_s = 0;               // fixed time of one dense matrix product
  double attention_s = 0;          // fixed time of attention in one layer
  double latent_attention_s = 0;   // the same for MLA
  double expert_s = 0;             // fixed time of the routed experts of one layer
  double layer_s = 0;              // norms, rotary positions, residuals of one layer
  double prompt_layer_s = 0;       // per layer of a step that carries prompts: it runs outside captured graphs
  double prompt_expert_s = 0;      // the same, per mixture-of-experts layer
  double step_overhead_s = 0;      // scheduler and sampling, once per step
  double sequence_overhead_s = 0;  // the same, per sampled sequence
  double request_overhead_s = 0;   // front end, once per request
  double allreduce_latency_s = 0;
  double allreduce_exchange_s = 0;  // second pass of the all-reduce of larger messages
  double allreduce_bandwidth = 0;   // of link_bytes_per_s
  double bulk_latency_s = 0;        // all-reduce of prompts: more latency, more bandwidth
  double bulk_bandwidth = 0;        // of link_bytes_per_s or internode_bytes_per_s
  double hop_latency_s = 0;         // activations handed from one pipeline stage, or one node, to the next
  double hop_bandwidth = 0;         // of link_bytes_per_s or internode_bytes_per_s
};

/// Parallelism of one engine: pp groups of GPUs split the layers. Inside a group, attention is divided over tp GPUs and
/// repeated attention_dp times, each copy with requests of its own; feed-forward layers are divided over all
/// tp x attention_dp GPUs, routed experts by whole experts into ep parts and those by width.
struct Shape {
  int tp = 1;
  int pp = 1;
  int attention_dp = 1;
  int ep = 1;
  int group() const { return tp * attention_dp; }
  int gpus() const { return group() * pp; }
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
