// SPDX-License-Identifier: Apache-2.0

enum PortInstructions {
  static func register(_ t: inout LoweringTable) {}
}
