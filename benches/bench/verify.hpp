// Contenders that should do the same thing must do it, or times would mean nothing.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_VERIFY_HPP
#define MOFO_BENCH_VERIFY_HPP

#include "settings.hpp"
#include "threads.hpp"

namespace bench {

/** Throws unless mofo with an update fraction of 1 makes the steps of the plain C loop. */
void verify_plain_loops(ThreadTeam &team, const Settings &settings);

/** Throws unless the moments computed for many steps of an embedding are those that the steps give. */
void verify_embedding(ThreadTeam &team, const Settings &settings);

}  // namespace bench

#endif  // MOFO_BENCH_VERIFY_HPP
