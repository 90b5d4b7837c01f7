// cp.async as a plain copy, at once.
#include "../cuda_emulator.h"
