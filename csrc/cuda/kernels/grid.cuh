// A barrier of all blocks of a grid. The launch must be cooperative, so that they all run at the
// same time. What a thread wrote before it is seen by all threads after it.
#pragma once
#ifndef MMIX_EMULATED
#include <cooperative_groups.h>
#define MMIX_GRID_BARRIER() ::cooperative_groups::this_grid().sync()
#endif
