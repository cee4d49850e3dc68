// Bugs that the tests plant, to show that the emulator would catch them: compiling with FASTDIFF_MUTATION=<name> turns
// one on. In a normal build `planted` is always false.
#pragma once

#if !defined(FASTDIFF_MUTATION)
#define FASTDIFF_MUTATION None
#endif

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

template <Mutation kCandidate>
constexpr bool planted = kCandidate == Mutation::FASTDIFF_MUTATION;

}  // namespace fastdiff::cuda
