#include "emulator/collectives.h"

#include <array>
#include <vector>

#include "emulator/collectives_state.h"
#include "emulator/race_detector.h"
#include "emulator/reports.h"
#include "emulator/scheduler.h"

namespace fastdiff::emulator {

namespace {

// Lanes of one warp that have called the same collective with the same mask and wait for the rest of the mask.
struct Pending {
  CollectiveKind kind;
  unsigned mask;
  unsigned arrived = 0;
  std::array<CollectiveCall*, kLanes> calls{};
};

constexpr uint64_t kUndefined = ~uint64_t{0};  // a NaN of every type: what a shuffle from an absent lane gives

std::array<std::vector<Pending>, kMaxThreads / kLanes> pending_by_warp;

template <typename Function>
void for_each_lane(unsigned mask, Function function) {
  for (; mask; mask &= mask - 1) function(__builtin_ctz(mask));
}

[[noreturn]] void report_divergence(SourceLine site, SourceLine other, const char* detail) {
  add_report({Fault::DivergentCollective, "", {nullptr, site}, {nullptr, other}, detail});
  abandon_launch(cudaErrorLaunchFailure);
}

void compute_whole_warp(const Pending& pending) {
  const CollectiveCall& first = *pending.calls[__builtin_ctz(pending.arrived)];
  if (pending.arrived != ~0u) report_divergence(first.site, {}, "lanes of the warp have exited");
  std::array<void*, kLanes> parts;
  for (int lane = 0; lane < kLanes; ++lane) {
    const CollectiveCall& call = *pending.calls[lane];
    if (call.function != first.function) {
      report_divergence(call.site, first.site, "lanes of one warp wait in different collectives or masks");
    }
    parts[lane] = call.part;
  }
  first.function(parts.data());
}

void compute(Pending& pending, int warp) {
  switch (pending.kind) {
    case CollectiveKind::Shuffle:
      for_each_lane(pending.arrived, [&](int lane) {
        const int source = pending.calls[lane]->source_lane;
        pending.calls[lane]->result = pending.arrived >> source & 1 ? pending.calls[source]->value : kUndefined;
      });
      break;
    case CollectiveKind::Ballot: {
      unsigned votes = 0;
      for_each_lane(pending.arrived, [&](int lane) { votes |= (pending.calls[lane]->value ? 1u : 0u) << lane; });
      for_each_lane(pending.arrived, [&](int lane) { pending.calls[lane]->result = votes; });
      break;
    }
    case CollectiveKind::SyncWarp:
      if (pending.arrived == live_lanes(warp)) race_detector_warp_barrier(warp);
      break;
    case CollectiveKind::WholeWarp:
      compute_whole_warp(pending);
      break;
  }
}

// Computes and wakes the lanes if all that can come have come.
bool complete_if_ready(Pending& pending, int warp) {
  if (pending.arrived != (pending.mask & live_lanes(warp))) return false;
  compute(pending, warp);
  for_each_lane(pending.arrived, [&](int lane) { wake(warp * kLanes + lane); });
  return true;
}

Pending& join(const CollectiveCall& call, int warp) {
  for (Pending& pending : pending_by_warp[warp]) {
    if (pending.kind == call.kind && pending.mask == call.mask) return pending;
    if (pending.mask & call.mask) {
      const CollectiveCall* waiting = pending.calls[__builtin_ctz(pending.arrived)];
      report_divergence(call.site, waiting->site, "lanes of one warp wait in different collectives or masks");
    }
  }
  return pending_by_warp[warp].emplace_back(Pending{call.kind, call.mask});
}

}  // namespace

int current_lane() { return running_thread()->lane(); }

void run_collective(CollectiveCall& call) {
  const int lane = running_thread()->lane();
  const int warp = running_thread()->warp();
  if (!(call.mask >> lane & 1)) report_divergence(call.site, {}, "the calling lane is not in its own mask");
  mark_waiting(ThreadState::InCollective, call.site);
  Pending& pending = join(call, warp);
  pending.calls[lane] = &call;
  pending.arrived |= 1u << lane;
  if (complete_if_ready(pending, warp)) {
    pending_by_warp[warp].erase(pending_by_warp[warp].begin() + (&pending - pending_by_warp[warp].data()));
  }
  run_until_woken();
}

void reset_collectives() {
  for (auto& pending : pending_by_warp) pending.clear();
}

void complete_collectives_without(int warp) {
  auto& all = pending_by_warp[warp];
  for (size_t i = 0; i < all.size();) {
    if (complete_if_ready(all[i], warp)) {
      all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

}  // namespace fastdiff::emulator
