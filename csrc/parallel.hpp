// Work split over threads: the caller and its helpers pull indexes from one counter. Results go to their own index, so
// they do not depend on the number of threads.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace cascadia {

struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("interrupted") {}
};

// Calls work(index, thread) for every index below `count`. `interrupted` is asked by the calling thread only.
template <class Work>
void parallel_for(std::size_t count, int threads, const Work& work, const std::function<bool()>& interrupted) {
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto run = [&](std::size_t thread) {
    try {
      for (std::size_t i; !stop.load(std::memory_order_relaxed) && (i = next.fetch_add(1)) < count;) {
        if (thread == 0 && interrupted && interrupted()) throw Cancelled();
        work(i, thread);
      }
    } catch (...) {
      stop = true;
      const std::scoped_lock hold(failure_lock);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    const auto wanted = static_cast<std::size_t>(threads > 1 ? threads : 1);
    for (std::size_t t = 1; t < wanted && t < count; ++t) helpers.emplace_back(run, t);
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cascadia
