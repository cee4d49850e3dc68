// Bugs that the tests plant, to show that the emulator would catch them: compiling with FASTDIFF_MUTATION_<NAME> turns
// one on. In a normal build `planted` is always false.
#pragma once

namespace fastdiff::cuda {

enum class Mutation {
  None,
  MissingBarrierBeforeRead,
  MissingBarrierBeforeWrite,
  MissingWait,
  OffByOneLoad,
  WrongMaskEdge,
  WrongSplitMerge
};

#if defined(FASTDIFF_MUTATION_MISSING_BARRIER_BEFORE_READ)
constexpr Mutation kMutation = Mutation::MissingBarrierBeforeRead;
#elif defined(FASTDIFF_MUTATION_MISSING_BARRIER_BEFORE_WRITE)
constexpr Mutation kMutation = Mutation::MissingBarrierBeforeWrite;
#elif defined(FASTDIFF_MUTATION_MISSING_WAIT)
constexpr Mutation kMutation = Mutation::MissingWait;
#elif defined(FASTDIFF_MUTATION_OFF_BY_ONE_LOAD)
constexpr Mutation kMutation = Mutation::OffByOneLoad;
#elif defined(FASTDIFF_MUTATION_WRONG_MASK_EDGE)
constexpr Mutation kMutation = Mutation::WrongMaskEdge;
#elif defined(FASTDIFF_MUTATION_WRONG_SPLIT_MERGE)
constexpr Mutation kMutation = Mutation::WrongSplitMerge;
#else
constexpr Mutation kMutation = Mutation::None;
#endif

template <Mutation kCandidate>
constexpr bool planted = kCandidate == kMutation;

}  // namespace fastdiff::cuda
