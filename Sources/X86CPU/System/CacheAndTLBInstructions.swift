// SPDX-License-Identifier: Apache-2.0

enum CacheAndTLBInstructions {
  static func register(_ t: inout LoweringTable) {}
}
