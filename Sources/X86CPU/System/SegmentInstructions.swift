// SPDX-License-Identifier: Apache-2.0

enum SegmentInstructions {
  static func register(_ t: inout LoweringTable) {}
}
