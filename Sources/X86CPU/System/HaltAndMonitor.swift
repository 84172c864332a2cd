// SPDX-License-Identifier: Apache-2.0

enum HaltAndMonitor {
  static func register(_ t: inout LoweringTable) {}
}
