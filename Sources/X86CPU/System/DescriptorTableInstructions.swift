// SPDX-License-Identifier: Apache-2.0

enum DescriptorTableInstructions {
  static func register(_ t: inout LoweringTable) {}
}
