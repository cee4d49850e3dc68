// The collectives that lanes of the running block wait in.
#pragma once

namespace fastdiff::emulator {

// Forgets them all, at the start of a block.
void reset_collectives();

// Completes those of the warp that waited only for lanes that have now exited.
void complete_collectives_without(int warp);

}  // namespace fastdiff::emulator
