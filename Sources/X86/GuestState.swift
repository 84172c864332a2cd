// SPDX-License-Identifier: Apache-2.0
//
// Guest state outside of registers, in VT-x's bits (SVM's interrupt shadow is `blockingBySTI`).

/// Guest interruptibility state (SDM volume 3, "Guest Non-Register State").
public enum Interruptibility {
  @inlinable public static var blockingBySTI: UInt32 { 1 << 0 }
  @inlinable public static var blockingByMovSS: UInt32 { 1 << 1 }
  @inlinable public static var blockingBySMI: UInt32 { 1 << 2 }
  @inlinable public static var blockingByNMI: UInt32 { 1 << 3 }
}

/// Guest activity state (SDM volume 3, "Guest Non-Register State").
public enum ActivityState {
  @inlinable public static var active: UInt32 { 0 }
  @inlinable public static var hlt: UInt32 { 1 }
  @inlinable public static var shutdown: UInt32 { 2 }
  @inlinable public static var waitForSIPI: UInt32 { 3 }
}
