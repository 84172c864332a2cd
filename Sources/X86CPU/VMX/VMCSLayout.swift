// SPDX-License-Identifier: Apache-2.0
//
// The location of each VMCS field: the one definition of the VMCS's layout.
//
// A VMCS is 4 KiB of host-physical memory:
//
//     0x000  revision identifier, abort indicator, launch state, CPU on which it is active
//     0x100  guest-state area          0x700  VM-exit control fields
//     0x400  host-state area           0x780  VM-entry control fields
//     0x500  VM-execution controls     0x800  VM-exit information fields
//
// Every field has 8 bytes there, zero-extended. While a VMCS is current, most guest-state fields
// are in CPUState instead ("lazy state"): such a field's row has the location, VMREAD and VMWRITE
// access it directly, and VMCLEAR or the VMPTRLD of another VMCS writes it back. The
// exit-information fields derive from the processor's record of the exit (`ExitFields`) while there
// is one. Fields that entry and exit controls load and save (EFER, PAT, DEBUGCTL, DR7) stay in
// memory; entry and exit copy them.
//
//     VMCSLayout.locations[VMCSLayout.slot(.guestRIP)]   // page offset, CPUState.rip, 8 bytes

import X86

/// The parts that VM entry checks again after a field changed.
package struct VMCSGroups: OptionSet, Sendable {
  package var rawValue: UInt16
  @inlinable package init(rawValue: UInt16) { self.rawValue = rawValue }

  /// Controls with checks. All other groups' checks depend on them.
  package static let controls = Self(rawValue: 1 << 0)
  /// Controls without checks (masks, offsets, bitmaps, window exiting): only copied.
  package static let values = Self(rawValue: 1 << 1)
  package static let injection = Self(rawValue: 1 << 2)
  package static let host = Self(rawValue: 1 << 3)
  package static let registers = Self(rawValue: 1 << 4)
  package static let segments = Self(rawValue: 1 << 5)
  /// RIP and non-register state.
  package static let rest = Self(rawValue: 1 << 6)
  package static let rflags = Self(rawValue: 1 << 7)
  /// Cached translations depend on the field. Set in addition to another group.
  package static let paging = Self(rawValue: 1 << 8)
  package static let all = Self(rawValue: 0x1FF)
}

/// Where a field's value is while its VMCS is current.
package enum FieldKind: UInt8 {
  /// In the VMCS's memory.
  case page
  /// In CPUState, of this many bytes.
  case state2, state4, state8
  /// RFLAGS: in CPUState, arithmetic flags lazy.
  case rflags
  /// An exit-information field; `state` is its `ExitField`.
  case exit
}

package struct FieldLocation {
  /// The field's encoding; `none` if no field has this slot.
  package var encoding: UInt16 = none
  package var page: UInt16 = 0
  package var state: UInt16 = 0
  package var groups: VMCSGroups = []
  package var kind: FieldKind = .page

  package static let none: UInt16 = 0xFFFF
}

package enum VMCSLayout {
  package static let revision: UInt32 = 0x4D56_5431
  package static let slotCount = 1024
  /// Together with the revision identifier: a shadow VMCS, only for a guest's VMREAD and VMWRITE.
  package static let shadowIndicator: UInt32 = 1 << 31

  // Header: byte offsets from the VMCS's start.
  package static let revisionOffset = 0
  package static let abortOffset = 4
  package static let launchStateOffset = 8
  package static let activeOnOffset = 12

  /// Width, area and the low six bits of the index.
  @inline(__always) package static func slot(_ field: VMCSField) -> Int {
    let raw = field.rawValue
    let index: UInt32 = (raw >> 1) & 0x3F
    let area: UInt32 = (raw >> 4) & 0xC0
    let width: UInt32 = (raw >> 5) & 0x300
    return Int(index | area | width)
  }

  /// One location for each slot; never freed.
  nonisolated(unsafe) package static let locations: UnsafePointer<FieldLocation> = {
    let table = UnsafeMutablePointer<FieldLocation>.allocate(capacity: slotCount)
    table.initialize(repeating: FieldLocation(), count: slotCount)
    for area in areas {
      for (n, row) in area.rows.enumerated() {
        var location = row.location
        location.encoding = UInt16(truncatingIfNeeded: row.field.rawValue)
        location.page = UInt16(area.start + n * 8)
        table[slot(row.field)] = location
      }
    }
    return UnsafePointer(table)
  }()

  private static func locations(_ isWanted: (FieldKind) -> Bool) -> [FieldLocation] {
    (0..<slotCount).map { locations[$0] }.filter {
      $0.encoding != FieldLocation.none && isWanted($0.kind)
    }
  }

  /// The locations that VMPTRLD loads and VMCLEAR writes back.
  package static let lazyLocations = locations { $0 != .page && $0 != .exit }
  static let exitLocations = locations { $0 == .exit }

  /// All existing fields.
  package static var fields: [VMCSField] { areas.flatMap { $0.rows.map(\.field) } }

  struct Row {
    var field: VMCSField
    var location: FieldLocation

    init(_ field: VMCSField, _ groups: VMCSGroups) {
      self.field = field
      location = FieldLocation(groups: groups)
    }

    init(_ field: VMCSField, _ exitField: ExitField) {
      self.init(field, [], .exit, offset: Int(exitField.rawValue))
    }

    init(
      _ field: VMCSField, _ groups: VMCSGroups, _ kind: FieldKind,
      _ path: PartialKeyPath<CPUState>
    ) {
      self.init(field, groups, kind, offset: MemoryLayout<CPUState>.offset(of: path) ?? 0)
    }

    init(_ field: VMCSField, _ groups: VMCSGroups, _ kind: FieldKind, offset: Int) {
      self.field = field
      location = FieldLocation(state: UInt16(offset), groups: groups, kind: kind)
    }
  }

  struct Area {
    var start: Int
    var rows: [Row]
  }

  static var areas: [Area] {
    [
      Area(start: 0x100, rows: guestRegisters + guestSegments + guestRest),
      Area(start: 0x400, rows: host),
      Area(start: 0x500, rows: execution),
      Area(start: 0x700, rows: exitControls),
      Area(start: 0x780, rows: entryControls),
      Area(start: 0x800, rows: exitInformation),
    ]
  }
}
