// SPDX-License-Identifier: Apache-2.0
//
// Hardware task switch.

import X86

/// What started a task switch: bits 31:30 of the exit's qualification (SDM volume 3, "Exit
/// Qualification for Task Switches").
package enum TaskSwitchSource: UInt64, Sendable {
  case call = 0
  case interruptReturn = 1
  case jump = 2
  case interrupt = 3
}
