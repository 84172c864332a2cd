// SPDX-License-Identifier: Apache-2.0
// No logic in C: this file exists because a C target needs one source.
#include "CHost.h"
