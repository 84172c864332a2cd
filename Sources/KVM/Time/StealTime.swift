// SPDX-License-Identifier: Apache-2.0
//
// Steal time: how long a vCPU was runnable but did not run, reported in guest memory (Linux,
// "MSR_KVM_STEAL_TIME"). It is the run delay of the vCPU's thread in the host's scheduler.
//
//     u64 steal   u32 version   u32 flags   u8 preempted ...   64 bytes
//
// `preempted` is 1 while another vCPU has this one's physical CPU. A guest then flushes its TLB
// without an interrupt: it sets bit 1 (KVM_FEATURE_PV_TLB_FLUSH), and the hypervisor flushes the
// translations before the vCPU runs again.

import CHost
import Host

#if canImport(Glibc)
  import Glibc
#endif

struct StealTime: Sendable {
  static let size = 64
  /// Bits of the MSR: 0 enabled, 5:1 reserved.
  static let enabled: UInt64 = 1
  static let reserved: UInt64 = 0x3E

  static let preemptedOffset = 16
  static let preempted: UInt8 = 1 << 0
  static let flushWanted: UInt8 = 1 << 1

  /// IA32-style MSR value: the address and the enable bit.
  var msr: UInt64 = 0
  /// The thread's run delay at the last accounting, and the thread.
  private var lastDelay: UInt64 = 0
  private var thread: UInt = 0

  var isEnabled: Bool { msr & Self.enabled != 0 }
  var address: UInt64 { msr & ~(Self.enabled | Self.reserved) }

  /// Nanoseconds stolen since the last call. The first call on a thread starts the count.
  mutating func take() -> UInt64 {
    let current = ThreadIdentifier.current.rawValue
    let delay = ThreadRunDelay.read()
    defer {
      thread = current
      lastDelay = delay
    }
    return thread == current && delay > lastDelay ? delay &- lastDelay : 0
  }
}

extension VirtualCPU {
  func writeStealMSR(_ value: UInt64) -> Bool {
    guard value & StealTime.reserved == 0 else { return false }
    clock.steal.msr = value
    accountStealTime()
    return true
  }

  /// Adds stolen time to the guest's structure, with the version protocol: odd while it changes.
  func accountStealTime() {
    guard clock.steal.isEnabled else { return }
    let stolen = clock.steal.take()
    var wantsFlush = false
    _ = unsafe writeMemory(clock.steal.address, count: StealTime.size, in: machine.memory) {
      place in
      let version = place.load(fromByteOffset: 8, as: UInt32.self) & ~1
      place.storeBytes(of: version &+ 1, toByteOffset: 8, as: UInt32.self)
      place.storeBytes(of: place.load(as: UInt64.self) &+ stolen, as: UInt64.self)
      let was = place.exchange(0, atByteOffset: StealTime.preemptedOffset)
      wantsFlush = was & StealTime.flushWanted != 0
      place.storeBytes(of: version &+ 2, toByteOffset: 8, as: UInt32.self)
    }
    if wantsFlush { backend.flushGuestTranslations() }
  }

  /// Yields the physical CPU to a waiting vCPU, and takes one again.
  func yieldSlot() {
    // Translations must not be flushed in the middle of an emulated instruction.
    guard clock.steal.isEnabled, runState.completion == .none else { return releaseSlot() }
    _ = unsafe writeMemory(clock.steal.address, count: StealTime.size, in: machine.memory) {
      _ = $0.exchange(StealTime.preempted, atByteOffset: StealTime.preemptedOffset)
    }
    releaseSlot()
    _ = takeSlot()
    accountStealTime()
  }
}
