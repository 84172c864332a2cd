// SPDX-License-Identifier: Apache-2.0

enum ControlRegisterInstructions {
  static func register(_ t: inout LoweringTable) {}
}
