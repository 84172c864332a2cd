// SPDX-License-Identifier: Apache-2.0
//
// Guest access to the chips: the ports of the 8259 pair and the 8254, and the I/O APIC's window.

import Host
import InterruptChips
import Synchronization
import X86

extension InterruptController {
  /// The ports of the chips, as `port & 0xFFFF` ranges: checked at every port exit.
  @inline(__always) static func ownsPort(_ port: UInt16) -> Bool {
    switch port {
    case 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40...0x43, 0x61: true
    default: false
    }
  }

  /// Reads a port of the chips; nil if no chip answers. Wider accesses read the first byte.
  func readPort(_ port: UInt16) -> UInt64? {
    chips.withLock { chips in
      switch port {
      case 0x40...0x43, 0x61:
        guard chips.pit != nil, port != 0x61 || chips.hasSpeaker else { return nil }
        let now = HostClock.monotonic()
        return chips.pit.map { pit -> UInt64 in
          var pit = pit
          defer { chips.pit = pit }
          return UInt64(pit.read(port: port, at: now))
        }
      default:
        let value = UInt64(chips.pic.read(port: port))
        updatePIC(&chips)
        return value
      }
    }
  }

  /// Writes a port of the chips; false if no chip answers.
  func writePort(_ port: UInt16, _ value: UInt64) -> Bool {
    let byte = UInt8(truncatingIfNeeded: value)
    return chips.withLock { chips in
      switch port {
      case 0x40...0x43, 0x61:
        guard chips.pit != nil, port != 0x61 || chips.hasSpeaker else { return false }
        let now = HostClock.monotonic()
        chips.pit?.write(port: port, byte, at: now)
        if port == 0x40 { chips.ticks.reset() }
        armPIT(&chips, now)
      default:
        let ended = noticingUnmasking(&chips) { $0.pic.write(port: port, byte) }
        endedLines(ended, &chips)
        updatePIC(&chips)
      }
      return true
    }
  }

  /// Whether a guest-physical address is in the I/O APIC's window.
  @inline(__always) func ownsAddress(_ address: UInt64) -> Bool {
    !isSplit && address &- IOAPIC.defaultAddress < IOAPIC.windowSize
  }

  func readIOAPIC(_ address: UInt64, size: Int) -> UInt64 {
    chips.withLock { chips in
      let value = UInt64(chips.ioapic.read(Int(address &- IOAPIC.defaultAddress) & ~0xF))
      let mask: UInt64 = size >= 8 ? .max : (1 &<< UInt64(truncatingIfNeeded: size &* 8)) &- 1
      return value & mask
    }
  }

  func writeIOAPIC(_ address: UInt64, _ value: UInt64) {
    chips.withLock { chips in
      let offset = Int(address &- IOAPIC.defaultAddress) & ~0xF
      let effect = noticingUnmasking(&chips) {
        $0.ioapic.write(offset, UInt32(truncatingIfNeeded: value))
      }
      switch effect {
      case .none: break
      case .send(let message, let pin): send(message, pin: pin, &chips)
      case .service(let pins): service(pins, &chips)
      }
    }
  }
}
