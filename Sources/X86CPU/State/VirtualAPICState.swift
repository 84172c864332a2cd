// SPDX-License-Identifier: Apache-2.0
//
// Virtualization of the guest's local APIC and tracking of guest-physical pages, as the hypervisor
// configures them. All are off unless their controls are on (VT-x:
// `VMX/VMXControls+Virtualization.swift`; SVM has none of them).

import X86

/// The virtualized parts of a local APIC (SDM volume 3, "APIC Virtualization and Virtual
/// Interrupts").
package struct VirtualAPICFeatures: OptionSet, Sendable, Hashable {
  package var rawValue: UInt8
  package init(rawValue: UInt8) { self.rawValue = rawValue }

  /// CR8 is the virtual TPR. All others but `accesses` require it.
  package static let tpr = Self(rawValue: 1 << 0)
  /// Accesses to the APIC-access page.
  package static let accesses = Self(rawValue: 1 << 1)
  /// MSRs 800H to 8FFH.
  package static let x2APIC = Self(rawValue: 1 << 2)
  /// All registers, not only the TPR.
  package static let registers = Self(rawValue: 1 << 3)
  /// The processor delivers interrupts.
  package static let delivery = Self(rawValue: 1 << 4)
  /// An external-interrupt exit acknowledges the interrupt: its vector is in the record.
  package static let acknowledges = Self(rawValue: 1 << 5)
}

package struct VirtualAPIC: Sendable {
  package var features: VirtualAPICFeatures = []
  /// Host address of the virtual-APIC page.
  package var page: UInt64 = 0
  /// Host address of the page at the guest's APIC address; all ones: none.
  package var accessPage: UInt64 = .max
  /// A virtual TPR with a lower class exits.
  package var threshold: UInt8 = 0
  /// Interrupt windows exit: no virtual interrupt is delivered.
  package var holdsDelivery = false
  /// Vectors whose EOI exits.
  package var eoiExits = InlineArray<4, UInt64>(repeating: 0)
  /// 7:0 RVI, the requested vector; 15:8 SVI, the vector in service.
  package var interruptStatus: UInt16 = 0
  /// The notification vector of posted interrupts, and the host address of their descriptor; above
  /// 255: none.
  package var postedVector: UInt16 = .max
  package var postedDescriptor: UInt64 = 0

  /// The running instruction runs alone, so that effects can follow it.
  var isOpen = false
  /// Offset of the running instruction's access, and whether it was a write; all ones: none.
  var accessed: UInt16 = .max
  var hasWritten = false

  package init() {}
}

/// Guest-physical pages (SDM volume 3, "Page-Modification Logging" and "Virtualization
/// Exceptions").
package struct PageTracking: Sendable {
  /// Host address of the log of modified pages; 0: none.
  package var log: UInt64 = 0
  /// Index of the next entry; above 511: the log is full.
  package var logIndex: UInt16 = 0
  /// The current access finds the log full.
  var isFull = false
  /// Host address of the information area of virtualization exceptions; 0: disabled.
  package var exceptionArea: UInt64 = 0
  /// Index of the current tables among those that the guest may switch between.
  package var view: UInt16 = 0
  /// Whether execution of user-mode addresses has a separate right.
  package var separatesUserExecution = false
  /// An event is being delivered.
  var isDelivering = false

  package init() {}
}
