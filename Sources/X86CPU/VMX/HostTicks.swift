// SPDX-License-Identifier: Apache-2.0

/// The host's TSC.
func chost_rdtsc() -> UInt64 { 0 }
