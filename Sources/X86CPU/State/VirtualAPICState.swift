// SPDX-License-Identifier: Apache-2.0
//
// What a hypervisor has the processor do for it with the guest's local APIC and with guest-physical
// pages. All of it is off unless its controls are on (VT-x: `VMX/VMXControls+Virtualization.swift`;
// SVM has none of it).

import X86

/// What of a local APIC is virtualized (SDM volume 3, "APIC Virtualization and Virtual
/// Interrupts").
package struct VirtualAPICFeatures: OptionSet, Sendable, Hashable {
  package var rawValue: UInt8
  package init(rawValue: UInt8) { self.rawValue = rawValue }

  /// CR8 is the virtual TPR. All others need it, but for `accesses`.
  package static let tpr = Self(rawValue: 1 << 0)
  /// Accesses to the APIC-access page.
  package static let accesses = Self(rawValue: 1 << 1)
  /// MSRs 800H to 8FFH.
  package static let x2APIC = Self(rawValue: 1 << 2)
  /// All registers, not the TPR alone.
  package static let registers = Self(rawValue: 1 << 3)
  /// Interrupts are delivered by the processor.
  package static let delivery = Self(rawValue: 1 << 4)
  /// An external interrupt that exits is acknowledged: its vector is in the record.
  package static let acknowledges = Self(rawValue: 1 << 5)
}

package struct VirtualAPIC: Sendable {
  package var features: VirtualAPICFeatures = []
  /// Host address of the virtual-APIC page.
  package var page: UInt64 = 0
  /// Host address of the page in whose place the guest finds its APIC; all ones: none.
  package var accessPage: UInt64 = .max
  /// A virtual TPR with a lower class exits.
  package var threshold: UInt8 = 0
  /// Interrupt windows exit: nothing is delivered.
  package var holdsDelivery = false
  /// Vectors whose EOI exits.
  package var eoiExits = InlineArray<4, UInt64>(repeating: 0)
  /// 7:0 RVI, the vector that asks; 15:8 SVI, the vector in service.
  package var interruptStatus: UInt16 = 0
  /// The vector that says that interrupts are posted, and the host address of where; above 255:
  /// none.
  package var postedVector: UInt16 = .max
  package var postedDescriptor: UInt64 = 0

  /// The instruction that runs does so alone, so that what comes behind it can.
  var isOpen = false
  /// Offset of the access that the running instruction has made, and whether it was a write; all
  /// ones: none.
  var accessed: UInt16 = .max
  var hasWritten = false

  package init() {}
}

/// Guest-physical pages (SDM volume 3, "Page-Modification Logging" and "Virtualization
/// Exceptions").
package struct PageTracking: Sendable {
  /// Host address of the log of modified pages; 0: none.
  package var log: UInt64 = 0
  /// Where the next entry goes; above 511: the log is full.
  package var logIndex: UInt16 = 0
  /// The access at hand finds the log full.
  var isFull = false
  /// Host address of where a virtualization exception leaves its information; 0: there are none.
  package var exceptionArea: UInt64 = 0
  /// Index of the tables in use among those that the guest may switch between.
  package var view: UInt16 = 0
  /// Whether execution of user-mode addresses has a right of its own.
  package var separatesUserExecution = false
  /// An event is being delivered.
  var isDelivering = false

  package init() {}
}
